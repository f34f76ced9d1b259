"""Build and freeze the embedded sandbox."""
