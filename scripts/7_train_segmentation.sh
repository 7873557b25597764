#!/usr/bin/env bash
# Train DeepLabv3+ on the pseudo-labels.
# Machine: one GPU of 24 GB, or 4 of 8 GB with GPUS=4. Time: about 36 minutes on an H100.
# Writes RUNS/segmentation/model.pt.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

if [ "$WEIGHTS" = none ]; then WEIGHTS=$RUNS/classification/model.pt; fi # the best features there are
stage train_segmentation.py \
  --data "$DATA" \
  --split "$SPLIT" \
  --labels "$RUNS/pseudo" \
  --out "$RUNS/segmentation" \
  --backbone "$BACKBONE" \
  --weights "$WEIGHTS" \
  --seed "$SEED" \
  "$@"
