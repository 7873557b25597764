#!/usr/bin/env python
"""Measure every stage against the usual way of doing it, on the same data, one call after another.

    python tools/benchmark.py --json results/benchmark_cpu.json --chart results/benchmark_cpu.png

About 15 minutes on 2 CPU cores, 5 on a GPU; the figures are worth something on a quiet machine
only. Data are synthetic photographs of VOC's size. Each pair is timed in turn (ours, reference,
ours ...) and the medians are compared; a ratio above 1 says ours is better. The references, in
tools/benchmarking/references.py, are ordinary code: float32 NCHW steps, a PIL and NumPy loader, one
image at a time, the dense random walk, pydensecrf once per pass, all files again per threshold.
Peak memory is measured on GPUs alone.
"""

import argparse
import sys
import tempfile
import textwrap
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `core` from any directory
from core import files
from core.errors import InputError
from core.method import crf
from core.run import distributed, options
from core.run.main import run_main
from core.run.parallel import cpu_count
from tools.benchmarking import inference, training, whole
from tools.benchmarking.measure import Bench, Row

import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FormatStrFormatter

STAGES = {
    "loader": training.loader,
    "puzzle": training.puzzle,
    "segmentation": training.segmentation,
    "affinity": training.affinity,
    "amp": training.amp,
    "compile": training.compiled,
    "cams": inference.cams,
    "walk": inference.walk,
    "affinity-labels": inference.affinity_labels,
    "parallel": inference.parallel,
    "crf": inference.torch_backend,
    "evaluation": inference.evaluation,
    "bytes": inference.cam_bytes,
    "pyramid": inference.pyramid_copies,
    "many-labels": whole.many_labels,
    "scaling": whole.scaling,
    "start": whole.start,
    "stages": whole.stages,
}
AGAINST_PYDENSECRF = ("affinity-labels", "crf")
MET, MISSED, OTHER, GRID = "#348058", "#c96830", "#6886aa", "#e1e1e1"  # colours of the chart
QUICK = {"size": (188, 250), "crop": 256, "backbone": "resnet18", "n_images": 4}


def get_args_parser() -> argparse.ArgumentParser:
    p = options.Parser(__doc__)
    add = p.add_argument
    stages = f"of {', '.join(STAGES)}; without it all, but compile on GPUs only"
    add("--stages", nargs="+", choices=STAGES, metavar="STAGE", help=stages)
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    threads = "CPU threads and processes, except in rows `per core`"
    add("--threads", type=options.integer(1, 1024), default=cpu_count(), help=threads)
    batch = "of training steps; 0: 32 on GPUs, 4 on CPUs"
    add("--batch-size", type=options.count, default=0, help=batch)
    add("--repeats", type=options.count, default=0, help="timed calls; 0: 3 to 10, as time allows")
    quick = "a ResNet-18, half of VOC's size, few calls, no targets: a first look, in two minutes"
    add("--quick", action="store_true", help=quick)
    add("--json", type=Path, metavar="FILE", help="write the rows there")
    add("--chart", type=Path, metavar="FILE", help="draw the ratios there (PNG)")
    return p


def print_row(row: Row) -> None:
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


def human(number: float) -> str:
    """Three digits, without an exponent: 0.0123, 4.56, 138,000."""
    return f"{float(f'{number:.3g}'):,.10g}"


def draw_chart(rows: list[Row], path: Path) -> None:
    """One bar a row on a logarithmic axis, beside it the figures; bars start at 1."""
    figure = Figure((14, 1.9 + 0.3 * len(rows)), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    for place, row in enumerate(rows):
        ratio, target = row["ratio"], row["target"]
        colour = OTHER if target is None else MET if ratio >= target else MISSED
        axes.barh(place, ratio - 1, left=1, height=0.66, color=colour, zorder=2)
        if target is not None:
            axes.vlines(target, place - 0.42, place + 0.42, "black", linewidth=3, zorder=3)
        end = max(ratio, target or 1, 1), place
        ours, reference = human(row["ours"]), human(row["reference"])
        text = f"{human(ratio)}x   {ours} against {reference} {row['unit']}"
        axes.annotate(text, end, (8, 0), textcoords="offset points", va="center")
    axes.set_xlim(right=60 * max(max(row["ratio"], row["target"] or 1) for row in rows))
    axes.set_yticks(range(len(rows)), [f"{row['stage']} ({row['device']})" for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.xaxis.set_major_formatter(FormatStrFormatter("%gx"))
    axes.minorticks_off()
    axes.grid(axis="x", color=GRID)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.axvline(1, color="grey", linewidth=1)
    machines = " and ".join(sorted({row["machine"] for row in rows}))
    axes.set_title(f"How many times better than the usual way\n{machines}", loc="left")
    meanings = {"target met": MET, "target missed": MISSED, "no target": OTHER}
    key = [Patch(color=colour, label=what) for what, colour in meanings.items()]
    key.append(Line2D([], [], color="black", linewidth=3, label="the target"))
    figure.legend(handles=key, loc="outside lower left", ncols=4, frameon=False)
    with files.atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser().parse_args(argv)
    device = distributed.start(args.device)
    cuda = device.type == "cuda"
    chosen = args.stages or [name for name in STAGES if cuda or name != "compile"]  # too long
    batch = args.batch_size or (2 if args.quick else 32 if cuda else 4)
    if args.json is not None:
        files.check_own(args.json, "rows")
    rows: list[Row] = []
    print(f"{'stage':<51}{'ours':>11}{'reference':>12} {'unit':<12}{'ratio':>8}{'target':>8}")
    with tempfile.TemporaryDirectory() as folder:
        how = args.threads, Path(folder), batch, args.repeats or int(args.quick), args.quick
        bench = Bench(device, *how, **(QUICK if args.quick else {}))
        for name in chosen:
            if name in AGAINST_PYDENSECRF:
                try:
                    crf.require("pydensecrf")
                except InputError as error:
                    print(f"{name}: left out; {error}", file=sys.stderr)
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
                files.write_json(args.json, {"rows": rows})
    if args.chart is not None and rows:
        args.chart.parent.mkdir(parents=True, exist_ok=True)
        draw_chart(rows, args.chart)


if __name__ == "__main__":
    run_main(main, get_args_parser)
