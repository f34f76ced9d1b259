"""The command line: one thin module per verb. A verb parses, calls and prints; it holds no logic."""
