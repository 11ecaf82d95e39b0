#!/usr/bin/env bash
# The measurements of docs/results.md: cost, accuracy and robustness of the paper's protocol, with controls. Every word
# continues where it was stopped.
#
#   scripts/results.sh run [--root DIR] [--weights FILE] [--output-dir DIR] [--only NAME…]   the runs: hours of two cores
#   scripts/results.sh tries [the same]      distillation, healing as a start, more epochs, after controls-0
#   scripts/results.sh checks [the same]     APGD and Square on fewer images, on the networks of those runs
#   scripts/results.sh page                  writes tables and figures of docs/results.md from the rows in docs/results/
#
# `run` and `checks` write docs/results/*.csv after each run, so that `page` shows what is there.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
setup
PYTHONPATH="$ROOT/scripts" exec "$VENV/bin/python" -m results "$@"
