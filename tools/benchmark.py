#!/usr/bin/env python
"""Measure every stage against the usual way of doing it, on the same data, one call after another.

    python tools/benchmark.py --json results/benchmark_cpu.json --chart results/benchmark_cpu.png

About 15 minutes on 2 CPU cores, 5 on a GPU; the figures are worth something on a quiet machine
only. Data are synthetic photographs of VOC's size. Each pair is timed in turn (ours, reference,
ours ...) and the medians are compared; a ratio above 1 says ours is better. The references, in
tools/benchmarking/references.py, are ordinary code: float32 NCHW steps, a PIL and NumPy loader, one
image at a time, the dense random walk, pydensecrf once per pass, all files again per threshold.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `core` from any directory
import torch

from core import files
from core.errors import InputError
from core.method import crf
from core.run import distributed, options
from core.run.main import run_main
from core.run.parallel import cpu_count
from tools.benchmarking import inference, refinement, training
from tools.benchmarking.chart import draw_chart
from tools.benchmarking.measure import Bench

STAGES = {
    "loader": training.loader,
    "puzzle": training.puzzle,
    "segmentation": training.segmentation,
    "affinity": training.affinity,
    "amp": training.amp,
    "compile": training.compiled,
    "cams": inference.cams,
    "walk": inference.walk,
    "affinity-labels": refinement.affinity_labels,
    "parallel": refinement.parallel,
    "crf": refinement.torch_backend,
    "evaluation": inference.evaluation,
    "bytes": inference.cam_bytes,
}
AGAINST_PYDENSECRF = ("affinity-labels", "crf")
QUICK = {"size": (72, 96), "crop": 64, "backbone": "resnet18", "n_images": 4}
HEAD = ("stage", "", "ours", "reference", "unit", "ratio", "target")


def get_args_parser() -> argparse.ArgumentParser:
    p = options.Parser(__doc__)
    add = p.add_argument
    stages = f"of {', '.join(STAGES)}; without it all, but compile on GPUs only"
    add("--stages", nargs="+", choices=STAGES, metavar="STAGE", help=stages)
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    threads = "CPU threads and processes, except in rows `per core`"
    add("--threads", type=options.positive, default=cpu_count(), help=threads)
    batch = "of the training steps; 0: 32 on GPUs, 4 on CPUs"
    add("--batch-size", type=int, default=0, help=batch)
    add("--repeats", type=int, default=0, help="timed calls; 0: 3 to 10, as time allows")
    add("--quick", action="store_true", help="tiny and once: shows that it works, not how fast")
    add("--json", type=Path, metavar="FILE", help="write the rows there")
    add("--chart", type=Path, metavar="FILE", help="draw the ratios there (PNG)")
    return p


def print_row(row: dict[str, Any]) -> None:
    """A line of figures, then what they are and what bounds them."""
    target = mark = ""
    if row["target"] is not None:
        target = f"{row['target']:.3g}"
        mark = "met" if row["ratio"] >= row["target"] else "MISSED"
    line = "{stage:<46}{device:>5}{ours:>11.4g}{reference:>12.4g} {unit:<12}{ratio:>8.3g}"
    print(f"{line.format_map(row)}{target:>8} {mark}")
    about = f"{row['note']}. " if row["note"] else ""
    about += f"Bound by {row['bound_by']}."
    if row.get("target_ours") is not None:
        about += f" Target: at most {row['target_ours']:g} {row['unit']}."
    sizes = [(row.get(f"peak_memory_{who}") or 0) >> 20 for who in ("ours", "reference")]
    if max(sizes) >= 32:  # what is smaller says nothing about a stage
        about += " Peak memory {} against {} MiB.".format(*sizes)
    print(textwrap.fill(about, 110, initial_indent="    ", subsequent_indent="    "), flush=True)


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser().parse_args(argv)
    device = distributed.start(args.device)
    cuda = device.type == "cuda"
    chosen = args.stages or [name for name in STAGES if cuda or name != "compile"]  # too long
    batch = args.batch_size or (2 if args.quick else 32 if cuda else 4)
    for path in filter(None, (args.json, args.chart)):
        path.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    print("{:<46}{:>5}{:>11}{:>12} {:<12}{:>8}{:>8}".format(*HEAD))
    with tempfile.TemporaryDirectory() as folder:
        how = args.threads, Path(folder), batch, args.repeats, args.quick
        bench = Bench(device, *how, **(QUICK if args.quick else {}))
        for name in chosen:
            if name in AGAINST_PYDENSECRF and crf.resolve_backend() != "pydensecrf":
                print(f"{name}: left out, pydensecrf does not import", file=sys.stderr)
                continue
            print(f"measuring {name} ...", file=sys.stderr, flush=True)
            torch.manual_seed(0)
            try:
                for row in STAGES[name](bench):
                    rows.append(row)
                    print_row(row)
            except torch.OutOfMemoryError:
                raise InputError(f"{name}: the GPU's memory is full; lower --batch-size") from None
            if args.json is not None:  # after every stage: an interrupted run keeps its figures
                files.write_json(args.json, rows)
    if args.chart is not None and rows:
        draw_chart(rows, args.chart)


if __name__ == "__main__":
    run_main(main, get_args_parser)
