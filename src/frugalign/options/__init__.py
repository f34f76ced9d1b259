"""Option groups that verbs and methods share, and the rules their values obey. No torch: every `--help` reads these files."""
