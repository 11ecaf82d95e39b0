#!/usr/bin/env bash
# The study of docs/study.md: does the consensus decide better? Every word continues where it was stopped.
#
#   scripts/study.sh one-shot [--root DIR]     rank once, remove, recalibrate, no training: under 30 minutes on 2 cores
#   scripts/study.sh tuned|stepwise|robustness|costs [--root DIR]   further measurements of the same networks
#   scripts/study.sh healing [--root DIR]      maps in place of removed blocks, other layers fitted anew, nothing trained
#   scripts/study.sh healing-tuned|healing-robustness [--root DIR]  the networks of healing, trained on and attacked
#   scripts/study.sh healing-vit dataset.root=DIR [OVERRIDE…]       a transformer, trained here; then: collect-vit OUTPUT_DIR
#   scripts/study.sh iterative [OVERRIDE…]     the paper's protocol by `consensus run -m`; then: collect OUTPUT_DIR
#   scripts/study.sh tables                    writes the tables of docs/study.md from the rows in docs/study/
#   scripts/study.sh figures                   draws the figures from the same rows
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
setup
if [ "${1:-}" = iterative ]; then
  shift
  exec "$VENV/bin/consensus" run -m experiment=study_cifar10 "$@"
fi
if [ "${1:-}" = healing-vit ]; then
  shift
  cd "$ROOT"
  "$VENV/bin/consensus" run -m experiment=study_vit prune.granularity=block,branch prune.refit=false,true "$@"
  exec "$VENV/bin/consensus" run -m experiment=study_vit prune.granularity=block,branch prune.refit=false,true \
    prune.replace=linear scoring.repair=true "$@"
fi
PYTHONPATH="$ROOT/scripts" exec "$VENV/bin/python" -m study "$@"
