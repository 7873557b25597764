#!/usr/bin/env python
"""Take the score maps of another project: a directory of scores for the walk, the CRF and scoring.

    python tools/import_scores.py result/cam --data VOCdevkit/VOC2012 --split train \\
        --out runs/theirs/cam

A file for each image, `<id>.npy`, in the form of IRN (also AdvCAM, ReCAM), Puzzle-CAM, CLIP-ES,
SEAM and psa, or plain arrays (.npy, .npz) and, for one class, grey images; tools/foreign.py has the
forms. The form is found out by looking. Pickled files are read by a reader that builds arrays and
dicts alone. Then: make_affinity_labels.py --split train --scores runs/theirs/cam, and so on.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `core` from any directory
from core import files
from core.data import images
from core.data.datasets import DataRoot
from core.errors import InputError
from core.progress import Bar
from core.run import options
from core.run.main import run_main
from core.run.record import Run
from tools import foreign

import torch


def get_args_parser() -> options.Parser:
    p = options.Parser(__doc__)
    p.add_argument("maps", type=Path, help="folder of the files")
    options.add_data(p, split="train")
    options.add_out(p)
    words = "the entry of a file's dict to take; else the first of " + ", ".join(foreign.MAPS)
    p.add_argument("--map", default="", help=words)
    return p


def find(folder: Path, image_id: str) -> Path:
    """The file of an image, whichever ending it has."""
    paths = [folder / f"{image_id}{ending}" for ending in foreign.ENDINGS]
    found = next((path for path in paths if path.is_file()), None)
    if found is None:
        raise InputError(f"{paths[0]}: no such file, nor with {', '.join(foreign.ENDINGS[1:])}")
    return found


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser().parse_args(argv)
    data = DataRoot(args.data)
    ids = data.ids(args.split)
    labels = data.image_labels(ids)
    paths = {i: find(args.maps, i) for i in ids}
    inputs = data.inputs(ids, labels, args.verify) | {"maps": files.digest_files(paths.values())}
    cpu = torch.device("cpu")
    run = Run("import_scores", args, cpu, "scores", data.classes, inputs, {}, ids)
    with run:
        if run.finished:
            return
        for image_id in Bar(ids, "import_scores", unit="image"):
            path, picture = paths[image_id], data.image_path(image_id)
            size = images.image_size(picture)
            how = labels[image_id], len(data.classes), size, args.map, picture
            scores = foreign.as_scores(foreign.load(path), path, *how)
            scores.save(args.out / f"{image_id}.npz")
        run.finish(images=len(ids), map=args.map or "imported")


if __name__ == "__main__":
    run_main(main, get_args_parser)
