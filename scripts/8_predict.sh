#!/usr/bin/env bash
# Segment val: four scales, mirror images, dense CRF; then score it.
# Machine: one GPU. Time: about 2 minutes on an H100. Disk: 30 MB.
# Expect: 66.9 (ResNeSt-101) and 71.9 (ResNeSt-269) in the paper's Table 3; it has no ResNet-50 row.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"

VAL=$(given split "$VAL" "$@")
case " $* " in *" -h "* | *" --help "*) python predict.py --help; exit ;; esac
if [ -z "$VAL" ]; then
  echo "no list to segment: VAL is empty, or $DATA has no val.txt; predict.py takes any pictures"
  exit
fi
stage predict.py \
  --data "$DATA" \
  --split "$VAL" \
  --checkpoint "$RUNS/segmentation/model.pt" \
  --out "$RUNS/predictions" \
  "$@"
made=$(given out "$RUNS/predictions" "$@")
figures=$RUNS/val.json
[ "$made" = "$RUNS/predictions" ] || figures=$made.json
score "$VAL" --labels "$made" --json "$figures"
