"""Option groups shared by verbs and methods, and the rules for their values. No torch: every `--help` reads these
files."""
