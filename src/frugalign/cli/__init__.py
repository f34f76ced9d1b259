"""The command line: one thin module per verb. A verb parses, calls and prints, and has no other logic."""
