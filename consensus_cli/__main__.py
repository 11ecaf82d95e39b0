"""`python -m consensus_cli` is the `consensus` command."""

import sys

from consensus_cli.cli.main import main

sys.exit(main())
