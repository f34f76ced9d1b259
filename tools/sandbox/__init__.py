"""What builds and freezes the embedded sandbox."""
