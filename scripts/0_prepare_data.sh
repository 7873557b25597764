#!/usr/bin/env bash
# Check VOC 2012, convert SBD's masks, write the train_aug list.
# Machine: any. Time: 5 minutes. Prints a table of what every split has and what is missing.
# Before: unpack VOCtrainval_11-May-2012.tar and, if wanted, SBD's benchmark.tgz (data/README.md).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
SBD=${SBD:-benchmark_RELEASE/dataset}

options=()
[ -d "$SBD" ] && options+=(--sbd "$SBD")  # optional: pixel labels, for a supervised comparison
python tools/prepare_voc.py \
  --voc "$DATA" \
  "${options[@]}"
