"""TRL's trainers, for comparison with our methods."""
