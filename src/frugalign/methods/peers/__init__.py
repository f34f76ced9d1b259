"""What the methods are compared with: TRL's trainers."""
