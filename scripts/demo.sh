#!/usr/bin/env bash
# The whole pipeline, small, on data it makes itself: no download but the Python packages.
# Machine: 2 CPU cores (6 minutes where they multiply bf16, else 20, after the installation) or any GPU.
# Prints one table and writes runs/demo/overview.png and runs/demo/metrics.json.
# Started again it finishes at once; stages whose options changed are done again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh
no_options "$@"
setup requirements.txt

DATA=runs/demo/data
RUNS=runs/demo
SEED=${SEED:-0}

# Nothing to do if neither the code nor an option changed since the last complete run.
state=$(cat scripts/demo.sh ./*.py core/*.py core/*/*.py tools/*.py tools/reporting/*.py tools/reporting/templates/* | sha256sum | cut -c1-16)-$SEED
if [ "$(cat $RUNS/done 2>/dev/null)" = "$state" ]; then
  cat $RUNS/table.txt
  echo "nothing changed since the last run; $RUNS/overview.png and $RUNS/metrics.json are there"
  exit
fi

# What makes it small: a ResNet-18 from scratch, 128-pixel images, few epochs, momentum 0.9, CAMs and
# segmentation at one scale. An image has 32x32 pixels at stride 4, a sixteenth of VOC's 94x125: pairs
# and walk reach less far, with 2^4 steps instead of 2^8. Thresholds are data's: VOC's is 0.35.
training=(--backbone resnet18 --batch-size 8 --crop 128 --momentum 0.9 --seed "$SEED"
  --stale redo)
classifier=("${training[@]}" --weights none --epochs 5 --sides 102 160 --lr 0.004)
scales=(--scales 1)

python tools/make_shapes.py \
  --out $DATA \
  --train 700 \
  --val 100 \
  --size 128

echo "1/8 two classifiers: plain CAM, Puzzle-CAM"
python train_classification.py --data $DATA --split train --out $RUNS/plain/classification \
  "${classifier[@]}" --no-p-cls --no-re
python train_classification.py --data $DATA --split train --out $RUNS/puzzle/classification \
  "${classifier[@]}"

echo "2/8 their CAMs"
for name in plain puzzle; do
  python make_cam.py --data $DATA --split train --out $RUNS/$name/cam \
    --checkpoint $RUNS/$name/classification/model.pt "${scales[@]}" --stale redo
  python evaluate.py --data $DATA --scores $RUNS/$name/cam --json $RUNS/$name/cam.json
done
RUN=$RUNS/puzzle

echo "3/8 affinity labels"
python make_affinity_labels.py --data $DATA --split train --scores $RUN/cam \
  --out $RUN/affinity_labels --stale redo

echo "4/8 boundary network"
python train_affinity.py --data $DATA --split train --labels $RUN/affinity_labels \
  --out $RUN/affinity "${training[@]}" --weights $RUN/classification/model.pt --epochs 3 \
  --sides 102 160 --radius 5

echo "5/8 random walk"
python make_random_walk.py --data $DATA --split train --scores $RUN/cam \
  --checkpoint $RUN/affinity/model.pt --log2-steps 4 --out $RUN/rw --stale redo
python evaluate.py --data $DATA --scores $RUN/rw --json $RUN/rw.json

echo "6/8 pseudo-labels"
python make_pseudo_labels.py --data $DATA --split train --scores $RUN/rw --threshold 0.2 \
  --crf-iterations 10 --out $RUN/pseudo --stale redo
python evaluate.py --data $DATA --labels $RUN/pseudo --json $RUN/pseudo.json

echo "7/8 segmentation network"
python train_segmentation.py --data $DATA --split train --labels $RUN/pseudo \
  --out $RUN/segmentation "${training[@]}" --weights $RUN/classification/model.pt --epochs 4 \
  --sides 102 200

echo "8/8 predictions on val, the picture and the table"
python predict.py --data $DATA --split val --checkpoint $RUN/segmentation/model.pt \
  --out $RUN/predictions "${scales[@]}" --stale redo
python evaluate.py --data $DATA --split val --labels $RUN/predictions --json $RUN/val.json
python tools/report.py $RUNS --data $DATA --out $RUNS --metrics $RUNS/metrics.json \
  | tee $RUNS/table.txt
echo "$state" >$RUNS/done
