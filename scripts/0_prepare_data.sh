#!/usr/bin/env bash
# Find or download VOC 2012, check it, convert SBD's masks, write the train_aug list.
# Machine: any. Time: 5 minutes, and the download. Prints a table of what every split has and what is
# missing. Before: nothing with --download (2 GB; with --sbd 1.4 GB more), else unpack VOC's tar and, if
# wanted, SBD's (data/README.md).
#   bash scripts/0_prepare_data.sh --download [--sbd] [--mirror URL] [--aug ZIP_OR_FOLDER]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
SBD=${SBD:-benchmark_RELEASE/dataset}  # optional: pixel labels, for a supervised comparison

python tools/fetch_voc.py \
  --voc "$DATA" \
  --sbd-folder "$SBD" \
  "$@"
