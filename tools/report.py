#!/usr/bin/env python
"""Make a report of runs: the paper's tables beside ours, curves, sweeps and galleries.

    python tools/report.py runs/tables runs/demo --out report

Writes OUT/index.html, one self-contained page (no server, no network; 1 to 15 MB), and
OUT/report.md with the same tables. A run folder holds table1/, table2/, table3/ with
<row>/seed<k>/<stage>/ as scripts/table*.sh make them, or the stages of any run. Rows that are not
there say "not run"; damaged files are named and left out. A minute per 1,000 images of a gallery.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `core` from any directory
from core import files
from core.errors import InputError
from core.run import options
from core.run.main import run_main
from tools.reporting.collect import collect
from tools.reporting.content import build
from tools.reporting.gallery import Choice
from tools.reporting.markdown import markdown
from tools.reporting.page import page


def get_args_parser() -> argparse.ArgumentParser:
    p = options.parser(__doc__)
    p.add_argument("runs", type=Path, nargs="+", help="run folders")
    p.add_argument("--out", type=Path, required=True, help="directory of the report")
    p.add_argument("--data", type=Path, help="data root of the galleries; else the runs' own")
    p.add_argument("--images", type=int, default=3, help="best, median and worst images; 0: none")
    p.add_argument("--per-class", type=int, default=1, help="the same for every class")
    p.add_argument("--side", type=options.positive, default=150, help="of a picture, in pixels")
    return p


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser().parse_args(argv)
    if args.images < 0 or args.per_class < 0:
        raise InputError("--images and --per-class: 0 or more")
    warnings: list[str] = []
    choice = Choice(args.images, args.per_class, args.side, args.data)
    report = build(collect(args.runs, warnings), choice, warnings)
    for line in report.warnings:
        print(f"left out: {line}", file=sys.stderr)
    args.out.mkdir(parents=True, exist_ok=True)
    files.write_text(args.out / "index.html", page(report))
    files.write_text(args.out / "report.md", markdown(report))
    print(f"{args.out / 'index.html'} and report.md: {len(report.blocks)} parts")


if __name__ == "__main__":
    run_main(main)
