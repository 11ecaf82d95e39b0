"""`python -m consensus_cli` is the `consensus` command."""

import sys

from consensus_cli.cli import main

sys.exit(main())
