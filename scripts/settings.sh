# What every numbered script reads first. Change it here, or from outside: `GPUS=4 bash scripts/1_...`
RECIPE=${RECIPE:-voc}             # voc: the paper's settings; coco: its followers' for COCO 2014 (docs/coco.md)
declare -A recipe=()              # options of a stage that differ from its defaults
case $RECIPE in
  voc) ;;
  coco)
    DATA=${DATA:-coco} RUNS=${RUNS:-runs/coco} SPLIT=${SPLIT:-train}
    recipe=(
      [train_classification.py]="--lr 0.05 --sides 400 800 --crop 640"
      [make_affinity_labels.py]="--foreground-threshold 0.35 --background-threshold 0.10"
      [make_pseudo_labels.py]="--threshold 0.25"
      [train_segmentation.py]="--lr 0.004 --epochs 15"
    ) ;;
  *) echo "error: RECIPE=$RECIPE: voc or coco" >&2; exit 1 ;;
esac
DATA=${DATA:-VOCdevkit/VOC2012}   # data root, prepared by 0_prepare_data.sh
RUNS=${RUNS:-runs/voc}            # every stage writes a directory below this one
SPLIT=${SPLIT:-train_aug}         # the list of images to train on
SCORED=${SCORED:-train}           # the list whose masks score CAMs and pseudo-labels, where there are any
VAL=${VAL-val}                    # the list to segment and score in the end; empty: none
BACKBONE=${BACKBONE:-resnet50}    # or resnet18, 34, 101, resnest50, 101, 269, or timm:NAME
WEIGHTS=${WEIGHTS:-imagenet}      # what the three trainings start from: imagenet, none, or a file
GPUS=${GPUS:-1}                   # processes on this machine; --batch-size stays global
SEED=${SEED:-0}

# Several machines: set NODES, NODE_RANK and MASTER (host:port of the first, whose port is free) on each
# and start the same script. RUNS must be one folder that all of them share.
NODES=${NODES:-1}
NODE_RANK=${NODE_RANK:-0}
MASTER=${MASTER:-localhost:29400}

cd "$(dirname "${BASH_SOURCE[0]}")/.."

# SMOKE=1: every stage on 20 of your images, small, in minutes of a CPU: does all of it run here?
if [ -n "${SMOKE:-}" ]; then
  RUNS=$RUNS/smoke
  lists=$RUNS/data/ImageSets/Segmentation
  mkdir -p "$lists"
  for each in "$DATA"/*; do
    [ "${each##*/}" = ImageSets ] || ln -sfn "$(realpath "$each")" "$RUNS/data/"
  done
  for each in "$SPLIT" $VAL; do head -n 20 "$DATA/ImageSets/Segmentation/$each.txt" >"$lists/$each.txt"; done
  DATA=$RUNS/data SCORED=$SPLIT
  training="--epochs 2 --batch-size 4 --crop 192 --sides 128 256"
  recipe[train_classification.py]+=" $training"
  recipe[train_affinity.py]+=" $training --radius 5"
  recipe[train_segmentation.py]+=" $training"
  recipe[make_cam.py]+=" --scales 1"
  recipe[make_affinity_labels.py]+=" --crf-iterations 1"
  recipe[make_random_walk.py]+=" --log2-steps 4"
  recipe[predict.py]+=" --scales 1 --crf-iterations 1"
fi

# stage SCRIPT OPTIONS...: run a stage on all GPUs; an option given twice counts as given last
stage() {
  local script=$1
  shift
  # shellcheck disable=SC2086 # options are words
  set -- "$script" ${recipe[$script]:-} "$@"
  if [ "$GPUS" -gt 1 ] || [ "$NODES" -gt 1 ]; then
    python -m core.run.launch --processes "$GPUS" --nodes "$NODES" --node-rank "$NODE_RANK" \
      --master "$MASTER" "$@"
  else
    python "$@"
  fi
}

# score LIST OPTIONS...: score a directory against the masks of a list, where there are any
score() {
  local list=$1 first
  shift
  first=$(head -n 1 "$DATA/ImageSets/Segmentation/$list.txt" 2>/dev/null || true)
  first=$(sed -E 's|^([^ ]*/)?JPEGImages/([^ ]+)\.[A-Za-z]+( .*)?$|\2|' <<<"$first")  # DeepLab's lists
  [ -e "$DATA/SegmentationClass/$first.png" ] || return 0
  python evaluate.py --data "$DATA" --split "$list" "$@"
}

# out DIRECTORY OPTIONS...: what the options name by --out, else the directory
out() {
  local found=$1
  while [ $# -gt 1 ]; do
    shift
    if [ "$1" = --out ]; then found=${2:-}; fi
  done
  echo "$found"
}
