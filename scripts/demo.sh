#!/usr/bin/env bash
# The whole pipeline, small, on data it makes itself: no download but the Python packages.
# Machine: 2 CPU cores (10 minutes after the installation) or any GPU.
# Prints one table and writes runs/demo/overview.png and runs/demo/metrics.json.
# Started again it finishes at once; stages whose options changed are done anew.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh
setup requirements.txt

DATA=runs/demo/data
RUNS=runs/demo
SEED=${SEED:-0}

# Nothing to do if neither the code nor an option changed since the last complete run.
state=$(cat scripts/demo.sh ./*.py core/*.py core/*/*.py tools/*.py | sha256sum | cut -c1-16)-$SEED
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

echo "1/6 two classifiers: plain CAM, Puzzle-CAM"
python train_classification.py --data $DATA --split train --out $RUNS/plain \
  "${classifier[@]}" --no-p-cls --no-re
python train_classification.py --data $DATA --split train --out $RUNS/puzzle \
  "${classifier[@]}"

echo "2/6 their CAMs"
for name in plain puzzle; do
  cam=$([ $name = plain ] && echo cam_plain || echo cam)
  python make_cam.py --data $DATA --split train --checkpoint $RUNS/$name/model.pt \
    --out $RUNS/$cam "${scales[@]}" --stale redo
  python evaluate.py --data $DATA --cams $RUNS/$cam --json $RUNS/$cam.json
done

echo "3/6 affinity labels and the boundary network"
python train_affinity.py --data $DATA --split train --cams $RUNS/cam --out $RUNS/affinity \
  "${training[@]}" --weights $RUNS/puzzle/model.pt --epochs 3 --sides 102 160 --radius 5

echo "4/6 random walk and dense CRF"
python make_pseudo_labels.py --data $DATA --split train --cams $RUNS/cam \
  --affinity $RUNS/affinity/model.pt --pad-to 128 --log2-steps 4 --crf-iterations 10 \
  --threshold 0.2 --save-scores $RUNS/rw --out $RUNS/pseudo --stale redo
python evaluate.py --data $DATA --cams $RUNS/rw --json $RUNS/rw.json
python evaluate.py --data $DATA --labels $RUNS/pseudo --json $RUNS/pseudo.json

echo "5/6 segmentation network"
python train_segmentation.py --data $DATA --split train --labels $RUNS/pseudo \
  --out $RUNS/segmentation "${training[@]}" --weights $RUNS/puzzle/model.pt --epochs 4 \
  --sides 102 200

echo "6/6 scores on val, the picture and the table"
python evaluate.py --data $DATA --split val --checkpoint $RUNS/segmentation/model.pt \
  --save-predictions $RUNS/predictions --json $RUNS/val.json "${scales[@]}" --stale redo
python tools/overview.py --data $DATA --demo $RUNS --split train val
python tools/summary.py plain=$RUNS/cam_plain.json cam=$RUNS/cam.json rw=$RUNS/rw.json \
  rw_crf=$RUNS/pseudo.json segmentation_val=$RUNS/val.json \
  --runs $RUNS/*/ --out $RUNS/metrics.json | tee $RUNS/table.txt
echo "$state" >$RUNS/done
