#!/usr/bin/env bash
# Sets up .venv with the test tools on the first call, then runs ruff, mypy and the tests. More words go to pytest:
#   scripts/test.sh -k metrics        scripts/test.sh -m slow
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
setup test
cd "$ROOT"
"$VENV/bin/ruff" check .
"$VENV/bin/ruff" format --check .
"$VENV/bin/mypy"
exec "$VENV/bin/python" -m pytest "$@"
