"""What the trainers share: the run folder with its files and its lock, atomic checkpoints, progress, work split over processes."""
