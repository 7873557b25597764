#!/usr/bin/env python
"""Give a directory of scores to another project, in its form: a file `<id>.npy` for each image.

    python tools/export_scores.py runs/voc/cam --form irn --out result/cam

Forms: irn (also AdvCAM, ReCAM), puzzlecam, seam (also psa); tools/foreign.py describes them. All
maps are float32, at stride 4 as they are and at the image's size by bilinear upsampling.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `core` from any directory
from core.data.scores import Scores
from core.errors import InputError
from core.files import naming, new_folder
from core.progress import Bar
from core.run import artefacts, options
from core.run.main import run_main
from tools import foreign

import numpy as np


def get_args_parser() -> options.Parser:
    p = options.Parser(__doc__)
    p.add_argument("scores", type=Path, help="directory of scores")
    p.add_argument("--form", choices=("irn", "puzzlecam", "seam"), default="irn", help="whose")
    p.add_argument("--out", type=Path, required=True, help="new folder of the files")
    return p


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser().parse_args(argv)
    made = artefacts.read(args.scores, "scores", None)
    if args.out.exists() and any(args.out.iterdir()):
        raise InputError(f"{args.out}: not empty; choose a new folder")
    names = [Path(name).stem for name in artefacts.read_sums(args.scores)]
    with new_folder(args.out) as folder:
        for name in Bar(names, "export_scores", unit="image"):
            scores = Scores.load(args.scores / f"{name}.npz", len(made["classes"]))
            theirs = np.array(foreign.to_form(scores, args.form), object)
            with naming(args.out / f"{name}.npy"):
                np.save(folder / f"{name}.npy", theirs)


if __name__ == "__main__":
    run_main(main, get_args_parser)
