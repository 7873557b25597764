#!/usr/bin/env bash
# Make affinity labels from the CAMs with dense CRFs, then train the boundary network on them.
# Machine: one 24 GB GPU; the CRFs run there, or on all CPU cores. Time: about 1 hour.
# Writes RUNS/affinity/labels/*.png (worth a look) and RUNS/affinity/model.pt.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

stage train_affinity.py \
  --data "$DATA" \
  --cams "$RUNS/cam" \
  --out "$RUNS/affinity" \
  --backbone "$BACKBONE" \
  --seed "$SEED"
