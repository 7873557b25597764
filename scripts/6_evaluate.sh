#!/usr/bin/env bash
# Score the segmentation model on val: four scales, mirror images, dense CRF.
# Machine: one GPU. Time: about 1 hour. Disk: 30 MB of predictions.
# Expect: 66.9 (ResNeSt-101) and 71.9 (ResNeSt-269) in the paper's Table 3; it has no ResNet-50 row.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

stage evaluate.py \
  --data "$DATA" \
  --checkpoint "$RUNS/segmentation/model.pt" \
  --split val \
  --save-predictions "$RUNS/predictions" \
  --json "$RUNS/val.json"
