#!/usr/bin/env bash
# Table 1: which loss terms help? CAM mIoU on train for L_cls, +L_p-cls, +L_re, and all.
# Machine: one GPU of 24 GB (or GPUS=4). Time: 55 minutes a seed on VOC and an H100; SMALL=1: 20 minutes for 2 seeds
# on 2 CPU cores. Paper (ResNet-50): 47.82, 47.70, 49.21, 51.53.
# Restart it at any point: finished steps are not repeated. SEEDS="0 1 2" for mean and deviation;
# DATA, RUNS, BACKBONES and GPUS are heeded too, and options are those of tools/tables.py.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh
table_options "$@"

python tools/tables.py 1 "${options[@]}" "$@"
