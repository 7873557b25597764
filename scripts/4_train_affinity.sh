#!/usr/bin/env bash
# Train the boundary network on the affinity labels.
# Machine: one GPU of 8 GB. Time: about a minute on an H100.
# Writes RUNS/affinity/model.pt.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

if [ "$WEIGHTS" = none ]; then WEIGHTS=$RUNS/classification/model.pt; fi # the best features there are
stage train_affinity.py \
  --data "$DATA" \
  --split "$SPLIT" \
  --labels "$RUNS/affinity_labels" \
  --out "$RUNS/affinity" \
  --backbone "$BACKBONE" \
  --weights "$WEIGHTS" \
  --seed "$SEED" \
  "$@"
