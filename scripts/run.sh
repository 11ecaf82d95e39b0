#!/usr/bin/env bash
# Sets up .venv on the first call, then runs `consensus run` with the given words:
#   scripts/run.sh model=resnet56 ratio=0.5
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
setup
exec "$VENV/bin/consensus" run "$@"
