#!/usr/bin/env bash
# Sets up .venv with the test tools on the first call, then runs ruff, mypy, the layer contracts and the tests. More words go to
# pytest; slow tests measure and start processes of their own, so give them the machine (-n 0):
#   scripts/test.sh -k metrics        scripts/test.sh -m slow -n 0
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
setup test
cd "$ROOT"
"$VENV/bin/ruff" check .
"$VENV/bin/ruff" format --check .
"$VENV/bin/mypy"
"$VENV/bin/lint-imports"
# Of a worker that crashes the others would wait for the tests for ever.
exec "$VENV/bin/python" -m pytest -n auto --dist loadfile --max-worker-restart 0 "$@"
