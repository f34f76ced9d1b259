"""The ground floor: errors, specs, files and the ledger. It imports neither torch nor any other part of frugalign."""
