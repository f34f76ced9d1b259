"""What the methods' trainers share: the run folder, atomic checkpoints, artefact cards."""
