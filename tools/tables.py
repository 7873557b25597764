#!/usr/bin/env python
"""Run the paper's tables row by row, score every step, and make the report that compares.

    python tools/tables.py 1 2 3 --data VOCdevkit/VOC2012 --runs runs/voc --seeds 0 1 2
    python tools/tables.py 1 2 3 --small --seeds 0 1

A row is RUNS/<backbone>/seed<N>/<variant>, a step of core/steps.py a directory below it: rows that
tables share are run once. Started again it goes on where it was, since finished steps return at
once. A row that fails leaves its reason in failed.txt and does not stop the others; exit status 1
if any did. `--small` makes synthetic data and takes 20 minutes a seed on 2 CPU cores; else see
scripts/table*.sh for hours and expected figures.
"""

import argparse
import itertools
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `core` from any directory
from core import files, steps
from core.data.datasets import DataRoot
from core.errors import InputError
from core.run import options
from core.run.main import run_main
from core.steps import Step

ROOT = Path(__file__).resolve().parent.parent
VARIANTS = {  # of the classifier
    "cls": ("--no-p-cls", "--no-re"),
    "p_cls": ("--no-re",),
    "re": ("--no-p-cls",),
    "all": (),
    "small": ("--re-seams", "drop", "--re-scale", "relative"),  # docs/results.md
}
BACKBONES = ("resnet50", "resnest50", "resnest101", "resnest269")
TABLES = {  # of the paper: the step that the rows end with, their variants and backbones
    1: ("cam", ("cls", "p_cls", "re", "all"), ("resnet50",)),
    2: ("pseudo", ("all",), BACKBONES),
    3: ("predictions", ("all",), BACKBONES),
}

SHAPES = "--train 450 --val 60 --size 128"
SMALL_TRAINING = "--batch-size 8 --crop 128 --momentum 0.9"
SMALL = {  # for the synthetic data; why these, scripts/demo.sh says
    "classification": f"{SMALL_TRAINING} --weights none --epochs 6 --sides 102 160 --lr 0.004",
    "cam": "--scales 1",
    "affinity": f"{SMALL_TRAINING} --epochs 4 --sides 102 160 --radius 5",
    "rw": "--log2-steps 4",
    "pseudo": "--crf-iterations 10 --threshold 0.2",
    "segmentation": f"{SMALL_TRAINING} --epochs 4 --sides 102 200",
    "predictions": "--scales 1",
}
# Steps of --hr-cam and --test, made from others of the list.
MADE_FROM = {"hr_cam": "cam", "test": "predictions"}


class Row(NamedTuple):
    """A row of one or more tables: its directory, and the last of its steps."""

    folder: Path
    backbone: str
    seed: int
    variant: str
    last: str


def get_args_parser() -> options.Parser:
    p = options.Parser(__doc__)
    p.add_argument("tables", type=int, nargs="+", choices=TABLES, help="tables of the paper")
    p.add_argument("--data", type=Path, help="data root (VOCdevkit/VOC2012; small: made)")
    p.add_argument("--split", help="list that is trained on (train_aug; small: train)")
    p.add_argument("--runs", type=Path, help="directory of all runs (runs/voc; small: runs/small)")
    p.add_argument(
        "--seeds", type=options.seed, nargs="+", default=[0], help="one run of each row a seed"
    )
    words = "in place of the paper's"
    p.add_argument("--backbones", nargs="+", type=options.backbone, help=words)
    p.add_argument("--variants", nargs="+", choices=VARIANTS, help=f"of the losses, {words}")
    p.add_argument("--gpus", type=options.integer(1, 64), default=1, help="processes of a stage")
    p.add_argument("--small", action="store_true", help="synthetic data, ResNet-18, minutes")
    words = "as in the released code, make hr_cam too, score it and make the affinity labels of it"
    p.add_argument("--hr-cam", action="store_true", help=words)
    p.add_argument("--test", action="store_true", help="Table 3: make the submission for test too")
    words = "what to do where other settings or inputs made what is there"
    p.add_argument("--stale", choices=("refuse", "redo"), default="refuse", help=words)
    more = "more options of a step, as in --with 'segmentation=--accumulate 4'; may be repeated"
    p.add_argument(
        "--with", dest="more", action="append", default=[], metavar="STEP=OPTIONS", help=more
    )
    return p


def rows(args: argparse.Namespace) -> list[Row]:
    """The rows of the tables asked for, each once."""
    order = [step.name for step in steps.STEPS]
    last: dict[tuple[int, str, str], str] = {}
    for end, variants, papers in map(TABLES.get, args.tables):
        names = args.backbones or (("resnet18",) if args.small else papers)
        for key in itertools.product(args.seeds, names, args.variants or variants):
            last[key] = max(last.get(key, end), end, key=order.index)
    return [
        Row(args.runs / name / f"seed{seed}" / variant, name, seed, variant, end)
        for (seed, name, variant), end in last.items()
    ]


def plan(row: Row, args: argparse.Namespace) -> Iterator[Step]:
    """The steps of a row in order."""
    for step in steps.STEPS:
        if args.hr_cam and step.name == "affinity_labels":
            step = replace(step, reads=(("--scores", "hr_cam"),))
        yield step
        if args.hr_cam and step.name == MADE_FROM["hr_cam"]:
            yield replace(step, name="hr_cam")
        if step.name == row.last:
            break
    if args.test and step.name == MADE_FROM["test"]:
        yield replace(step, name="test", title="", split="test")


def commands(step: Step, row: Row, args: argparse.Namespace) -> Iterator[list[object]]:
    """A step's stage, and what scores it or packs it for the server: scripts and their options."""
    models = [each.name for each in steps.STEPS if each.holds == "model"]
    out, data = row.folder / step.name, ["--data", args.data]
    split = args.split if step.split == "train" else step.split
    stage = [f"{step.script}.py", *data, "--split", split, "--out", out]
    stage += ["--stale", "redo"] if args.stale == "redo" else []
    for option, name in step.reads:
        source = row.folder / name
        stage += [option, source / "model.pt" if name in models else source]
    if step.name in models:
        stage += ["--backbone", row.backbone, "--seed", row.seed]
    if step.name == models[0]:
        stage += VARIANTS[row.variant]
    elif step.name in models and args.small:  # the synthetic data need no download
        stage += ["--weights", row.folder / models[0] / "model.pt"]
    given = [each.partition("=")[::2] for each in args.more]
    for name, words in [*SMALL.items(), *given] if args.small else given:
        stage += shlex.split(words) if name == MADE_FROM.get(step.name, step.name) else []
    yield stage + ["--map", "hr_cam"] * (step.name == "hr_cam")

    if step.title:
        score = ["evaluate.py", *data, "--split", step.split, f"--{step.holds}", out]
        yield [*score, "--json", row.folder / f"{step.figures}.json"]
    if step.name == "test":
        archive = row.folder / "submission.tgz"
        yield ["tools/export_voc.py", *data, "--predictions", out, "--out", archive]


def run_row(row: Row, args: argparse.Namespace) -> str:
    """Run a row to its end, or up to what fails: the reason in one line, empty if nothing did."""
    for step in plan(row, args):
        for number, command in enumerate(commands(step, row, args)):
            if failed := run(command, 1 if number else args.gpus):
                return f"{step.name}: {failed}"
    return ""


def run(command: Sequence[object], processes: int = 1) -> str:
    """Run a script, its output passed through: why it failed in one line, empty if it did not."""
    launcher = ("-m", "core.run.launch", "--processes", processes) if processes > 1 else ()
    columns, lines = shutil.get_terminal_size()  # progress bars see a pipe
    process = subprocess.Popen(
        list(map(str, (sys.executable, *launcher, *command))),
        cwd=ROOT,
        env=os.environ | {"COLUMNS": str(columns), "LINES": str(lines)},
        stderr=subprocess.PIPE,
    )
    tail = b""
    try:
        # To the end of the pipe, which what a killed stage leaves behind may hold open.
        while (ready := select.select([process.stderr], [], [], 1)[0]) or process.poll() is None:
            block = os.read(process.stderr.fileno(), 1 << 16) if ready else b""
            if ready and not block:
                break
            sys.stderr.buffer.write(block)
            sys.stderr.flush()
            tail = (tail + block)[-8192:]
        return reason(process.wait(), tail.decode("utf-8", "replace"))
    finally:
        process.terminate()  # after Ctrl-C or SIGTERM; nothing once it has ended
        process.wait()
        process.stderr.close()


def reason(status: int, stderr: str) -> str:
    """Why a script failed, from its exit status and its last words; empty if it did not."""
    if status == 0:
        return ""
    if status < 0:
        name = signal.Signals(-status).name
        return f"killed by {name}{' (out of memory?)' * (name == 'SIGKILL')}"
    lines = [line.strip() for line in re.split(r"[\r\n]", stderr) if line.strip()]
    errors = [line.partition("error: ")[2] for line in lines if "error: " in line]
    return (errors or lines or [f"exit status {status}"])[-1]


def complete(args: argparse.Namespace) -> None:
    """Fill in what depends on --small, make the synthetic data and check what was given.

    Raises:
        InputError: no such data or list, or --with without a step.
    """
    known = [step.name for step in steps.STEPS]
    for each in args.more:
        if "=" not in each or each.partition("=")[0] not in known:
            raise InputError(f"--with {each!r}: give STEP=OPTIONS; steps are {', '.join(known)}")
        try:
            shlex.split(each)
        except ValueError as error:
            raise InputError(f"--with {each!r}: {error}") from None
    # Absolute, since scripts run in the repository.
    args.runs = (args.runs or Path("runs/small" if args.small else "runs/voc")).resolve()
    args.split = args.split or ("train" if args.small else "train_aug")
    if args.small and args.data is None:
        args.data = args.runs / "data"
        if failed := run(["tools/make_shapes.py", "--out", args.data, *SHAPES.split()]):
            raise InputError(failed)
    args.data = (args.data or Path("VOCdevkit/VOC2012")).resolve()
    DataRoot(args.data).ids(args.split)


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser().parse_args(argv)
    complete(args)
    todo, failures = rows(args), []
    for number, row in enumerate(todo, 1):
        print(f"== row {number} of {len(todo)}: {row.folder}", flush=True)
        note = row.folder / "failed.txt"
        if failed := run_row(row, args):
            row.folder.mkdir(parents=True, exist_ok=True)
            files.write_text(note, failed + "\n")
            failures.append(f"FAILED: {row.folder}: {failed}")
        else:
            note.unlink(missing_ok=True)
    page = args.runs / "report"
    if failed := run(["tools/report.py", args.runs, "--out", page, "--data", args.data]):
        failures.append(f"FAILED: {page}: {failed}")
    if failures:
        sys.exit("\n".join(failures))


if __name__ == "__main__":
    run_main(main, get_args_parser)
