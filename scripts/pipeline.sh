#!/usr/bin/env bash
# All stages in order, for VOC or for any data root: DATA=my SPLIT=train RUNS=runs/my bash scripts/pipeline.sh
# Machine: one GPU of 24 GB, or 4 of 8 GB with GPUS=4. Time: about an hour on an H100 for VOC.
# SMOKE=1: all of it on 20 images, in minutes of a CPU, in RUNS/smoke: does everything run here?
# Interrupted and started again it goes on where it was. Ends with the report's address.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh
no_options "$@"

bash scripts/1_train_classification.sh
bash scripts/2_make_cam.sh
bash scripts/3_make_affinity_labels.sh
bash scripts/4_train_affinity.sh
bash scripts/5_make_random_walk.sh
bash scripts/6_make_pseudo_labels.sh
bash scripts/7_train_segmentation.sh
bash scripts/8_predict.sh

source scripts/settings.sh
python tools/report.py "$RUNS" --data "$DATA" --out "$RUNS/report"
