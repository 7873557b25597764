#!/usr/bin/env bash
# docs/photograph.png: what each step makes of a photograph that no network was trained on.
# The photograph: chelsea, by Stefan van der Walt, CC0, from scikit-image (pip install scikit-image).
# Machine: a CPU; a minute. Needs the runs of scripts/real_small.sh, with its RUNS and DATA.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh
no_options "$@"
RUNS=${RUNS:-runs/animals}
DATA=${DATA:-$RUNS/data}
SEED=${SEED:-0}
OUT=$RUNS/photograph
trained=$(realpath "$RUNS/timm:tf_efficientnet_lite0/seed$SEED")

mkdir -p "$OUT"/data/{JPEGImages,ImageSets/Segmentation} "$OUT"/{plain,puzzle}
cp "$DATA/classes.txt" "$OUT/data"
echo "chelsea cat" >"$OUT/data/labels.txt"
for list in train val; do echo chelsea >"$OUT/data/ImageSets/Segmentation/$list.txt"; done
python -c "
import sys, skimage.data
from PIL import Image
image = Image.fromarray(skimage.data.chelsea())
image.thumbnail((256, 256))  # the size of what was trained on
image.save(sys.argv[1])" "$OUT/data/JPEGImages/chelsea.png"
for name in plain:cls puzzle:small; do
  ln -sfn "$trained/${name#*:}/classification" "$OUT/${name%:*}/classification"
  python make_cam.py --data "$OUT/data" --split train --out "$OUT/${name%:*}/cam" --stale redo \
    --checkpoint "$trained/${name#*:}/classification/model.pt"
done
python make_random_walk.py --data "$OUT/data" --split train --scores "$OUT/puzzle/cam" --stale redo \
  --checkpoint "$trained/small/affinity/model.pt" --pad-to 256 --log2-steps 6 --out "$OUT/puzzle/rw"
python make_pseudo_labels.py --data "$OUT/data" --split train --scores "$OUT/puzzle/rw" --stale redo \
  --threshold auto --out "$OUT/puzzle/pseudo"
python predict.py --data "$OUT/data" --split train --checkpoint "$trained/small/segmentation/model.pt" \
  --out "$OUT/puzzle/predictions" --stale redo
python - "$OUT" <<'END'
import sys
from pathlib import Path

from core.data import images, scoring, visual
from core.data.scores import Scores, otsu
from tools.reporting.gallery import draw
from tools.reporting.pictures import Cell

import numpy as np

out = Path(sys.argv[1])
photo = images.as_array(images.read_image(out / "data/JPEGImages/chelsea.png"))
row = [("photograph", "chelsea", Cell(photo))]
for title, folder in (("plain CAM", "plain/cam"), ("Puzzle-CAM", "puzzle/cam")):
    best, _ = scoring.best_class(Scores.load(out / folder / "chelsea.npz", 6))
    row.append((title, "", Cell(visual.heat_map(photo, best))))
best, classes = scoring.best_class(Scores.load(out / "puzzle/rw/chelsea.npz", 6))
labels = {"+ random walk": np.where(best > otsu(best), classes, 0).astype(np.uint8)}
for title, folder in (("+ dense CRF", "pseudo"), ("segmentation", "predictions")):
    labels[title] = images.read_label(out / "puzzle" / folder / "chelsea.png", 7)
row += [(t, "", Cell(visual.overlay(photo, each), each)) for t, each in labels.items()]
draw([row], (out / "data/classes.txt").read_text().split(), 210, Path("docs/photograph.png"))
END
