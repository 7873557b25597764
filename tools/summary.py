#!/usr/bin/env python
"""Print one table of a pipeline's scores and times, and write them to a metrics.json.

    python tools/summary.py plain=runs/demo/plain.json cam=runs/demo/cam.json \\
        rw=runs/demo/rw.json rw_crf=runs/demo/pseudo.json segmentation_val=runs/demo/val.json \\
        --runs runs/demo/*/ --out runs/demo/metrics.json

The files are evaluations of evaluate.py; `--runs` are stage directories, whose seconds are taken
from their run.json. What is left out stays out of the table. Instant.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `core` from any directory
from core import files
from core.errors import InputError
from core.run import options
from core.run.main import run_main

ROWS = {  # name on the command line -> key in metrics.json, row of the table
    "plain": ("cam_plain", "plain CAM, train"),
    "cam": ("cam", "Puzzle-CAM, train"),
    "rw": ("rw", "+RW, train"),
    "rw_crf": ("rw_crf", "+RW+dCRF, train"),
    "segmentation_val": ("segmentation_val", "segmentation, val"),
}


def get_args_parser() -> argparse.ArgumentParser:
    p = options.parser(__doc__)
    p.add_argument(
        "scores", nargs="+", metavar="NAME=FILE", help=f"names: {', '.join(ROWS)}; JSON files"
    )
    p.add_argument("--runs", type=Path, nargs="*", default=[], help="stage directories")
    p.add_argument("--out", type=Path, help="write the figures there as JSON")
    return p


def read_scores(pairs: list[str]) -> dict[str, dict[str, Any]]:
    """NAME=FILE pairs -> evaluations by name, in the table's order.

    Raises:
        InputError: an unknown name, or a file that is no evaluation.
    """
    found = {}
    for pair in pairs:
        name, _, path = pair.partition("=")
        if name not in ROWS or not path:
            raise InputError(f"{pair}: give NAME=FILE with a name of {', '.join(ROWS)}")
        scores = files.read_json(Path(path), "make it with evaluate.py --json")
        miou = scores.get("miou")
        if not isinstance(miou, int | float) or not math.isfinite(miou):
            raise InputError(f"{path}: holds no mIoU; make it with evaluate.py --json")
        found[name] = scores
    return {name: found[name] for name in ROWS if name in found}


def read_seconds(runs: list[Path]) -> dict[str, float]:
    """Directory name -> seconds in its run.json; directories without one are passed over.

    So are the scores of a random walk: make_pseudo_labels.py writes them on its way.
    """
    seconds = {}
    for run in runs:
        if (run / "run.json").is_file():
            record = files.read_json(run / "run.json", "run the stage again")
            if record.get("stage") == "random_walk":
                continue
            seconds[run.resolve().name] = float(record.get("seconds") or 0)
    return seconds


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser().parse_args(argv)
    scores, seconds = read_scores(args.scores), read_seconds(args.runs)
    print(f"{'':<24}{'mIoU':>7}{'threshold':>11}{'images':>8}")
    for name, figures in scores.items():
        threshold = figures.get("threshold")
        shown = f"{threshold:.2f}" if isinstance(threshold, int | float) else "-"
        images = figures.get("images", "-")
        print(f"{ROWS[name][1]:<24}{figures['miou']:>7.2f}{shown:>11}{images!s:>8}")
    if seconds:
        print(f"\n{'stage':<24}{'seconds':>7}")
        for name, value in seconds.items():
            print(f"{name:<24}{value:>7.0f}")
        print(f"{'together':<24}{sum(seconds.values()):>7.0f}")
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        metrics: dict[str, Any] = {ROWS[name][0]: each["miou"] for name, each in scores.items()}
        files.write_json(args.out, metrics | {"seconds": seconds})


if __name__ == "__main__":
    run_main(main)
