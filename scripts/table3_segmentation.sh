#!/usr/bin/env bash
# Table 3: segmentation on val for each backbone, and the submission for test (TEST=1).
# Machine: one GPU of 24 GB. Time: an hour a seed with a ResNet-50 on VOC and an H100; SMALL=1: 15 minutes for 2
# seeds on 2 CPU cores. What it has in common with Tables 1 and 2 is computed once.
# Paper (val/test): ResNeSt-101 66.9/67.7, ResNeSt-269 71.9/72.2. Variables: see Table 1.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ "${TEST:-0}" = 0 ]; then TEST=; fi
source scripts/setup.sh
table_options "$@"

python tools/tables.py 3 "${options[@]}" ${TEST:+--test} "$@"
