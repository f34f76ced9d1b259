"""Shared by the trainers: the run folder and its lock, atomic checkpoints, progress, and work split over processes."""
