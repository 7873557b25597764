#!/usr/bin/env bash
# Table 1: which loss terms help? CAM mIoU on train for L_cls, +L_p-cls, +L_re, and all.
# Machine: one 40 GB GPU (or GPUS=4). Time: 10 hours a seed on VOC; SMALL=1: 20 minutes for 2 seeds
# on 2 CPU cores. Paper (ResNet-50): 47.82, 47.70, 49.21, 51.53.
# Restart it at any point: finished rows are not repeated. SEEDS="0 1 2" for mean and deviation.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/tables.sh"
[ -n "$SMALL" ] && BACKBONE=resnet18

for seed in $SEEDS; do
  for name in cls cls_pcls cls_re all; do
    case $name in
      cls) switches="--no-p-cls --no-re" ;;
      cls_pcls) switches="--no-re" ;;
      cls_re) switches="--no-p-cls" ;;
      all) switches="" ;;
    esac
    dir=$RUNS/table1/$name/seed$seed
    [ $name = all ] && reuse "$BACKBONE" "$dir" "$RUNS"/table{3,2}/"$BACKBONE/seed$seed"
    row "$dir" "classify $BACKBONE $seed $dir $switches"
  done
done
report
