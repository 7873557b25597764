# Sourced by the table scripts: data, options per stage, and the stages of one row.
# SMALL=1 runs the same table on the synthetic data in minutes.
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
SMALL=${SMALL:-}
SEEDS=${SEEDS:-0}                 # e.g. SEEDS="0 1 2"
failed=0

if [ -n "$SMALL" ]; then
  source scripts/setup.sh
  setup requirements.txt
  DATA=runs/small/data RUNS=runs/small BACKBONES=${BACKBONES:-resnet18} TRAIN=train
  python tools/make_shapes.py --out $DATA --train 450 --val 60 --size 128
  common=(--batch-size 8 --crop 128 --momentum 0.9)
  classification=("${common[@]}" --weights none --epochs 6 --sides 102 160 --lr 0.004)
  cams=(--scales 1)
  affinity=("${common[@]}" --epochs 4 --sides 102 160 --radius 5)
  labels=(--pad-to 128 --log2-steps 4 --crf-iterations 10 --threshold 0.2)
  segmentation=("${common[@]}" --epochs 4 --sides 102 200)
else
  BACKBONES=${BACKBONES:-"resnet50 resnest50 resnest101 resnest269"} TRAIN=train_aug
  classification=() cams=() affinity=() labels=() segmentation=()
fi

# Weights of the affinity and segmentation backbones: ImageNet's, or on synthetic data, where there
# are none, the classifier's.
weights() { if [ -n "$SMALL" ]; then echo "$1/classification/model.pt"; else echo imagenet; fi; }

# classify BACKBONE SEED DIR OPTIONS...: classifier, its CAMs, their score
classify() {
  local backbone=$1 seed=$2 dir=$3
  shift 3
  stage train_classification.py --data "$DATA" --split $TRAIN --out "$dir/classification" \
    --backbone "$backbone" --seed "$seed" "${classification[@]}" "$@"
  stage make_cam.py --data "$DATA" --split $TRAIN \
    --checkpoint "$dir/classification/model.pt" --out "$dir/cam" "${cams[@]}"
  python evaluate.py --data "$DATA" --cams "$dir/cam" --json "$dir/cam.json"
}

# refine BACKBONE SEED DIR: boundary network, random walk, dense CRF, their scores
refine() {
  local backbone=$1 seed=$2 dir=$3
  stage train_affinity.py --data "$DATA" --split $TRAIN --cams "$dir/cam" \
    --out "$dir/affinity" --backbone "$backbone" --seed "$seed" \
    --weights "$(weights "$dir")" "${affinity[@]}"
  stage make_pseudo_labels.py --data "$DATA" --split $TRAIN --cams "$dir/cam" \
    --affinity "$dir/affinity/model.pt" --save-scores "$dir/rw" --out "$dir/pseudo" "${labels[@]}"
  python evaluate.py --data "$DATA" --cams "$dir/rw" --json "$dir/rw.json"
  python evaluate.py --data "$DATA" --labels "$dir/pseudo" --json "$dir/pseudo.json"
}

# segment BACKBONE SEED DIR: segmentation network, its score on val
segment() {
  local backbone=$1 seed=$2 dir=$3
  stage train_segmentation.py --data "$DATA" --split $TRAIN --labels "$dir/pseudo" \
    --out "$dir/segmentation" --backbone "$backbone" --seed "$seed" \
    --weights "$(weights "$dir")" "${segmentation[@]}"
  stage evaluate.py --data "$DATA" --split val --checkpoint "$dir/segmentation/model.pt" \
    --save-predictions "$dir/predictions" --json "$dir/val.json" "${cams[@]}"
}

# reuse BACKBONE DIR OTHER...: link the finished stages that another table's row shares with this one;
# a classifier and its pseudo-labels are hours
reuse() {
  local backbone=$1 dir=$2 other name
  shift 2
  [ -e "$dir" ] && return
  for other in "$@"; do
    grep -qs "\"backbone\": \"$backbone\"" "$other/classification/run.json" || continue
    mkdir -p "$dir"
    for name in classification cam affinity rw pseudo; do
      grep -qs '"finished": true' "$other/$name/run.json" && ln -sr "$other/$name" "$dir/$name"
    done
    cp "$other"/{cam,rw,pseudo}.json "$dir" 2>/dev/null || true  # scored again where they differ
    return
  done
}

# row DIR COMMAND...: run a row once; a failure is noted and does not stop the other rows
row() {
  local dir=$1
  shift
  mkdir -p "$dir"
  [ -e "$dir/done.txt" ] && { echo "$dir: done before"; return; }
  echo "== $dir"
  # A shell of its own: `set -e` has no effect inside a function that is tested for success.
  if bash -euo pipefail -c 'source scripts/tables.sh; for step in "$@"; do eval "$step"; done' \
    row "$@" 2> >(tee "$dir/stderr.txt" >&2); then
    rm -f "$dir/failed.txt"
    date -u >"$dir/done.txt"
  else
    grep -E '^error' "$dir/stderr.txt" | tail -n 1 >"$dir/failed.txt" || echo failed >"$dir/failed.txt"
    echo "FAILED: $dir: $(cat "$dir/failed.txt")"
    failed=1
  fi
}

# report TABLE: the page that compares with the paper
report() {
  python tools/report.py "$RUNS" --out "$RUNS/report"
  echo "$RUNS/report/index.html"
  return $failed
}
