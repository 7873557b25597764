"""The ratios as a bar chart, a PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter

from core.files import atomic_path

MET, MISSED, OTHER, GRID = "#348058", "#c96830", "#6886aa", "#e1e1e1"


def draw_chart(rows: list[dict[str, Any]], path: Path) -> None:
    """One bar a row on a logarithmic axis, the target a black mark; bars start at 1."""
    figure = Figure((12, 1.3 + 0.3 * len(rows)), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    for place, row in enumerate(rows):
        ratio, target = row["ratio"], row["target"]
        colour = OTHER if target is None else MET if ratio >= target else MISSED
        axes.barh(place, ratio - 1, left=1, height=0.66, color=colour, zorder=2)
        if target is not None:
            axes.vlines(target, place - 0.42, place + 0.42, "black", linewidth=3, zorder=3)
        text = f"{ratio:.3g}x" if ratio < 1000 else f"{ratio:.0f}x"
        end = max(ratio, target or 1, 1), place
        axes.annotate(text, end, (8, 0), textcoords="offset points", va="center")
    axes.set_xlim(right=2 * max(max(row["ratio"], row["target"] or 1) for row in rows))
    axes.set_yticks(range(len(rows)), [f"{row['stage']} ({row['device']})" for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.xaxis.set_major_formatter(FormatStrFormatter("%gx"))
    axes.minorticks_off()
    axes.grid(axis="x", color=GRID)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.axvline(1, color="grey", linewidth=1)
    machines = " and ".join(sorted({row["machine"] for row in rows}))
    title = f"How many times better than the usual way\n{machines}; the mark is the target"
    axes.set_title(title, loc="left")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")
