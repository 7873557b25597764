#!/usr/bin/env bash
# Random walk from the CAMs along the learned boundaries.
# Machine: one GPU. Time: about 4 minutes on an H100. Disk: 0.5 GB.
# Expect (paper, ResNet-50, train): 64.2 mIoU.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

stage make_random_walk.py \
  --data "$DATA" \
  --split "$SPLIT" \
  --scores "$RUNS/cam" \
  --checkpoint "$RUNS/affinity/model.pt" \
  --out "$RUNS/rw" \
  "$@"
made=$(given out "$RUNS/rw" "$@")
score "$(scored "$@")" --scores "$made" --json "$made.json"
