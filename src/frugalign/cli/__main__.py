"""`python -m frugalign.cli`, the same as `frugalign`."""

from frugalign.cli.main import main

raise SystemExit(main())
