#!/usr/bin/env bash
# Table 2: CAM, +RW, +RW+dCRF on train for each backbone.
# Machine: one 80 GB GPU for the large backbones. Time: 30 minutes a seed with a ResNet-50 on VOC and an H100,
# three times that with a ResNeSt-269; SMALL=1: 10 minutes for 2 seeds on 2 CPU cores. What it has in
# common with Tables 1 and 3 is computed once.
# Paper: ResNet-50 51.53/64.16/64.70, ResNeSt-50 57.59/69.48/69.91, ResNeSt-101 61.85/71.92/72.46,
# ResNeSt-269 62.45/74.14/74.67. ResNeSts need requirements-timm.txt. Variables: see Table 1.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh
table_options "$@"

python tools/tables.py 2 "${options[@]}" "$@"
