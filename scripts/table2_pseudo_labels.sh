#!/usr/bin/env bash
# Table 2: CAM, +RW, +RW+dCRF on train for each backbone.
# Machine: one 80 GB GPU for the large backbones. Time: 6 hours a seed with a ResNet-50 on VOC, four
# times that with a ResNeSt-269; SMALL=1: 10 minutes for 2 seeds on 2 CPU cores. Less where Table 1
# or 3 was run before: what they have in common is computed once.
# Paper: ResNet-50 51.53/64.16/64.70, ResNeSt-50 57.59/69.48/69.91, ResNeSt-101 61.85/71.92/72.46,
# ResNeSt-269 62.45/74.14/74.67. ResNeSts need requirements-resnest.txt.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/tables.sh"

for seed in $SEEDS; do
  for backbone in $BACKBONES; do
    dir=$RUNS/table2/$backbone/seed$seed
    reuse "$backbone" "$dir" "$RUNS/table3/$backbone/seed$seed" "$RUNS/table1/all/seed$seed"
    row "$dir" "classify $backbone $seed $dir" "refine $backbone $seed $dir"
  done
done
report
