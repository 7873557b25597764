#!/usr/bin/env bash
# Make the labels of the boundary network: what the CAMs are confident of, after dense CRFs.
# Machine: one GPU, or all CPU cores. Time: about 5 minutes on an H100.
# Writes RUNS/affinity_labels/*.png, worth a look: cream is neither object nor background.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

stage make_affinity_labels.py \
  --data "$DATA" \
  --split "$SPLIT" \
  --scores "$RUNS/cam" \
  --out "$RUNS/affinity_labels" \
  "$@"
