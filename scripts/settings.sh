# What every numbered script reads first. Change it here, or from outside: `GPUS=4 bash scripts/1_...`
# Wherever a script is started, paths are relative to the repository.
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
VAL=${VAL-auto}                   # the list to segment and score in the end; auto: val, if there; empty: none
BACKBONE=${BACKBONE:-resnet50}    # or resnet18, 34, 101, resnest50, 101, 269, or timm:NAME
WEIGHTS=${WEIGHTS:-imagenet}      # what the trainings start from: imagenet, a file, or none (then the
                                  # second and third start from the first)
GPUS=${GPUS:-1}                   # processes on this machine; --batch-size stays global
SEED=${SEED:-0}

# Several machines: set NODES, NODE_RANK and MASTER (host:port of the first, whose port is free) on each
# and start the same script. RUNS must be one folder that all of them share.
NODES=${NODES:-1}
NODE_RANK=${NODE_RANK:-0}
MASTER=${MASTER:-localhost:29400}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh
if [ "$VAL" = auto ]; then
  VAL=val
  [ -e "$DATA/ImageSets/Segmentation/val.txt" ] || VAL=
fi

# SMOKE=1: every stage on 20 of your images, small, in minutes of a CPU: does all of it run here?
if [ "${SMOKE:-0}" != 0 ]; then
  [ -d "$DATA" ] || { echo "error: DATA=$DATA: no such directory in $PWD" >&2; exit 1; }
  RUNS=$RUNS/smoke
  lists=$RUNS/data/ImageSets/Segmentation
  mkdir -p "$lists"
  for each in "$DATA"/*; do
    [ "${each##*/}" = ImageSets ] || ln -sfn "$(realpath "$each")" "$RUNS/data/"
  done
  for each in "$SPLIT" $VAL; do # evenly spread: lists are sorted by class
    tr -d '\r' <"$DATA/ImageSets/Segmentation/$each.txt" | awk 'NF { id[n++] = $0 }
      END { m = n < 20 ? n : 20; for (i = 0; i < m; i++) print id[int(i * n / m)] }' >"$lists/$each.txt"
  done
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
  local script=$1 each
  shift
  for each in "$@"; do
    case $each in -h | --help) python "$script" --help; exit ;; esac
  done
  # shellcheck disable=SC2086 # options are words
  set -- "$script" ${recipe[$script]:-} "$@"
  if [ "$GPUS" -gt 1 ] || [ "$NODES" -gt 1 ]; then
    python -m core.run.launch --processes "$GPUS" --nodes "$NODES" --node-rank "$NODE_RANK" \
      --master "$MASTER" "$@"
  else
    python "$@"
  fi
}

# score LIST OPTIONS...: score a directory against the masks of a list, where all its images have one
score() {
  local list=$1 id masks=0 count=0
  shift
  while read -r id || [ -n "$id" ]; do
    [ -n "$id" ] || continue
    count=$((count + 1))
    if [ -e "$DATA/SegmentationClass/$id.png" ]; then masks=$((masks + 1)); fi
  done < <(sed -E 's|^([^ ]*/)?JPEGImages/([^ ]+)\.[A-Za-z]+( .*)?$|\2|' \
    "$DATA/ImageSets/Segmentation/$list.txt" 2>/dev/null | tr -d '\r') # DeepLab's lists
  if [ "$masks" = 0 ]; then return; fi
  if [ "$masks" -lt "$count" ]; then
    echo "not scored: of the $count images of $list $masks have a mask; list those and give SCORED=LIST"
    return
  fi
  python evaluate.py --data "$DATA" --split "$list" "$@"
}

# given NAME DEFAULT OPTIONS...: what the options say of --NAME, else the default
given() {
  local name=--$1 found=$2
  shift 2
  while [ $# -gt 0 ]; do
    case $1 in
      "$name") found=${2:-} ;;
      "$name="*) found=${1#*=} ;;
    esac
    shift
  done
  echo "${found%/}"
}

# scored OPTIONS...: the list that the scores or labels made with these options are scored on
scored() {
  local list
  list=$(given split "$SPLIT" "$@")
  if [ "$list" = "$SPLIT" ]; then echo "$SCORED"; else echo "$list"; fi
}
