#!/usr/bin/env python
"""Show what runs came to: a table, a picture, and a page beside the paper's figures.

    python tools/report.py runs/voc --out runs/voc/report
    python tools/report.py runs/tables runs/demo --out report --metrics metrics.json
    python tools/report.py --compare runs/a runs/b --out report

Prints a table of every step's score and time, and writes OUT/overview.png (some images and what
every step made of them), OUT/index.html (one self-contained page of 1 to 15 MB: the paper's tables
beside ours, curves, galleries; no server, no network) and OUT/report.md with the same tables. A run
folder holds the steps' directories (RUNS/cam, RUNS/cam.json ...) or any tree of such folders, whose
`seed0`, `seed1` ... are taken together. Rows that are not there say "not run"; damaged files are
named and left out. `--compare` writes OUT/compare.html: two runs side by side, per class and per
image, the largest difference first. A minute per 1,000 images of a gallery.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `core` from any directory
from core import files
from core.errors import InputError
from core.run import options
from core.run.main import run_main
from tools.reporting import paper, summarise
from tools.reporting.collect import collect
from tools.reporting.compare import compare
from tools.reporting.gallery import galleries, overview
from tools.reporting.pictures import albums
from tools.reporting.templating import page

MARK = "<title>Puzzle-CAM: results</title>"  # of this tool's page


def get_args_parser() -> options.Parser:
    p = options.Parser(__doc__)
    p.add_argument("runs", type=Path, nargs="*", help="run folders")
    words = "write OUT/compare.html of these two"
    p.add_argument("--compare", type=Path, nargs=2, metavar="RUN", help=words)
    p.add_argument("--out", type=Path, required=True, help="directory of the report")
    p.add_argument("--metrics", type=Path, metavar="FILE", help="write the figures there as JSON")
    p.add_argument("--data", type=Path, help="data root of the pictures; else the runs' own")
    p.add_argument(
        "--images", type=options.count, default=3, help="best, median and worst images; 0: none"
    )
    p.add_argument("--per-class", type=options.count, default=1, help="the same for every class")
    p.add_argument(
        "--overview", type=options.count, default=4, help="images of a split in overview.png"
    )
    p.add_argument("--ids", nargs="+", default=[], help="these images in overview.png instead")
    p.add_argument("--side", type=options.side, default=192, help="of a picture, in pixels")
    what = "background score of pictures of scores that no evaluation found the best of"
    p.add_argument("--threshold", type=options.fraction, help=what)
    options.add_device(p)
    return p


def check_out(out: Path, metrics: Path | None) -> None:
    """Refuse to replace files of others: the report's in `out`, and the JSON of --metrics."""
    if metrics is not None and metrics.exists():
        there = files.read_json(metrics, "choose another name for the result")
        each = [there] if "seconds" in there else there.values()  # of one family, or of several
        if not all(isinstance(found, dict) and "seconds" in found for found in each):
            raise InputError(f"{metrics}: not a result of this script; choose another name")
    index = out / "index.html"
    if index.is_file() and MARK in index.read_text("utf-8", "replace")[:1000]:
        return
    for name in ("index.html", "report.md", "overview.png", "compare.html"):
        if (out / name).exists():
            raise InputError(f"{out / name}: not of a report; choose another --out")


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser().parse_args(argv)
    if args.metrics is not None:
        files.check_own(args.metrics)
    check_out(args.out, args.metrics)
    if not args.runs and not args.compare:
        raise InputError("give folders of runs, or --compare with two")
    args.runs = args.runs or args.compare
    warnings: list[str] = []
    families = collect(args.runs, warnings)
    print(page("terminal.txt", families=families), end="")
    pictured = {family.name: albums(family, args, warnings) for family in families}
    shown = {name: galleries(found, args, warnings) for name, found in pictured.items()}
    tables = paper.tables(families)
    content = {"families": families, "tables": tables, "galleries": shown, "warnings": warnings}
    content["out"] = args.out
    args.out.mkdir(parents=True, exist_ok=True)
    for name in ("index.html", "report.md"):
        files.write_text(args.out / name, page(name, **content))
    if args.compare:
        found = compare(args.compare, args, warnings)
        files.write_text(args.out / "compare.html", page("compare.html", **found))
    if args.metrics is not None:
        files.write_json(args.metrics, summarise.metrics(families))
    if families and (args.overview or args.ids):
        most = max(families, key=lambda f: sum(len(a.columns) for a in pictured[f.name]))
        overview(most, pictured[most.name], args, warnings)
    for line in dict.fromkeys(warnings):
        print(f"left out: {line}", file=sys.stderr)
    print(f"{args.out}: {', '.join(sorted(path.name for path in args.out.iterdir()))}")


if __name__ == "__main__":
    run_main(main, get_args_parser)
