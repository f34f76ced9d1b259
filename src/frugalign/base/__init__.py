"""The ground floor: errors, names of things, files, the ledger. Imports nothing of frugalign above it, and no torch."""
