#!/usr/bin/env bash
# Tables 1 to 3 on small photographs: VOC's animals at 256 pixels, ImageNet weights, hours of a CPU.
# Which images: tools/prepare_animals.py. What was measured with it: docs/results.md.
#   VOC=VOCdevkit/VOC2012 WEIGHTS=efficientnet-lite0-57934424.pth bash scripts/real_small.sh
# Machine: 2 CPU cores (3 hours a seed) or any GPU. Restart it at any point: finished steps are not repeated.
# Table 1's rows and the losses for small crops (`small`), then the plain classifier and those through walk, CRF
# and segmentation. SEEDS="0 1 2", RUNS, DATA (made if it is not there), GPUS and options of tools/tables.py as in
# Table 1. Without WEIGHTS timm downloads its own.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh
for each in "$@"; do
  case $each in -h | --help) python tools/tables.py --help; exit ;; esac
done
RUNS=${RUNS:-runs/animals}
DATA=${DATA:-$RUNS/data}
if [ ! -e "$DATA/classes.txt" ]; then
  python tools/prepare_animals.py --voc "${VOC:-VOCdevkit/VOC2012}" --out "$DATA"
fi

training="--batch-size 16 --sides 144 256 --crop 192"
if [ -n "${WEIGHTS:-}" ]; then training+=" --weights $(printf %q "$(realpath "$WEIGHTS")")"; fi
# An image has 64 pixels at stride 4, half of VOC's: pairs and walk reach half as far. VOC's background
# score is too low for these scores; auto needs no mask.
options=(--data "$DATA" --runs "$RUNS" --split train_aug --backbones timm:tf_efficientnet_lite0
  ${SEEDS:+--seeds $SEEDS} ${GPUS:+--gpus "$GPUS"}
  --with "classification=$training --epochs 6 --lr 0.05"
  --with "affinity=$training --radius 5"
  --with "rw=--pad-to 256 --log2-steps 6"
  --with "pseudo=--threshold auto"
  --with "segmentation=$training --epochs 8" "$@")
python tools/tables.py 1 --variants cls p_cls re all small "${options[@]}"
python tools/tables.py 3 --variants cls small "${options[@]}"
