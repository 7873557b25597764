#!/usr/bin/env bash
# Table 3: segmentation on val for each backbone, and the submission for test (TEST=1).
# Machine: one 80 GB GPU. Time: 20 hours a seed with a ResNet-50 on VOC; SMALL=1: 15 minutes for 2
# seeds on 2 CPU cores. Less where Table 1 or 2 was run before: what they have in common is computed
# once. Paper (val/test): ResNeSt-101 66.9/67.7, ResNeSt-269 71.9/72.2.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/tables.sh"

for seed in $SEEDS; do
  for backbone in $BACKBONES; do
    dir=$RUNS/table3/$backbone/seed$seed
    reuse "$backbone" "$dir" "$RUNS/table2/$backbone/seed$seed" "$RUNS/table1/all/seed$seed"
    row "$dir" "classify $backbone $seed $dir" "refine $backbone $seed $dir" \
      "segment $backbone $seed $dir"
    if [ -n "${TEST:-}" ]; then
      row "$dir/test" "stage evaluate.py --data $DATA --split test --save-predictions $dir/test/labels \
        --checkpoint $dir/segmentation/model.pt" \
        "python tools/export_voc.py --data $DATA --predictions $dir/test/labels --out $dir/test/submission.tgz"
    fi
  done
done
report
