"""What the commands' options share. No torch: every `--help` reads these files."""
