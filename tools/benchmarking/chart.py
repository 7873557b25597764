"""The ratios as a bar chart, a PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter

from core.files import atomic_path

MET, MISSED, OTHER, GRID = "#348058", "#c96830", "#6886aa", "#e1e1e1"


def draw_chart(rows: list[dict[str, Any]], path: Path) -> None:
    """One bar a row on a logarithmic axis, the target a black mark; bars start at 1."""
    ratios = np.array([row["ratio"] for row in rows])
    targets = [row["target"] for row in rows]
    colours = [
        OTHER if target is None else MET if ratio >= target else MISSED
        for ratio, target in zip(ratios, targets, strict=True)
    ]
    figure = Figure((12, 1.3 + 0.3 * len(rows)), dpi=100, layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(rows))
    axes.barh(places, ratios - 1, left=1, height=0.66, color=colours, zorder=2)
    for place, ratio, target in zip(places, ratios, targets, strict=True):
        if target is not None:
            axes.vlines(target, place - 0.42, place + 0.42, "black", linewidth=3, zorder=3)
        where = max(ratio, target or 1, 1), place
        text = f"{ratio:.3g}x" if ratio < 1000 else f"{ratio:.0f}x"
        axes.annotate(text, where, (8, 0), textcoords="offset points", va="center")
    axes.set_xscale("log")
    axes.set_xlim(right=2 * max(ratios.max(), *(target or 1 for target in targets)))
    axes.set_yticks(places, [f"{row['stage']} ({row['device']})" for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.xaxis.set_major_formatter(FormatStrFormatter("%gx"))
    axes.minorticks_off()
    axes.grid(axis="x", color=GRID)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.axvline(1, color="grey", linewidth=1)
    machines = " and ".join(sorted({row["machine"] for row in rows}))
    axes.set_title(
        f"How many times better than the usual way\n{machines}; the mark is the target", loc="left"
    )
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
