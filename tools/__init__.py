"""What keeps the project, and is not part of the package."""
