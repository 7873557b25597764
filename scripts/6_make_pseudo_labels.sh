#!/usr/bin/env bash
# Pseudo-labels: background score, argmax, dense CRF.
# Machine: one GPU, or all CPU cores. Time: about 2 minutes on an H100.
# Expect (paper, ResNet-50, train): 64.7 mIoU.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

stage make_pseudo_labels.py \
  --data "$DATA" \
  --split "$SPLIT" \
  --scores "$RUNS/rw" \
  --out "$RUNS/pseudo" \
  "$@"
made=$(given out "$RUNS/pseudo" "$@")
score "$(scored "$@")" --labels "$made" --json "$made.json"
