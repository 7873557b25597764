"""Line charts as SVG data URIs: training curves and threshold sweeps."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tools.reporting.collect import Row

OWN_CHART = {"alpha": "alpha", "lr": "learning rate", "peak": "peak of the present classes' maps"}
STYLE = Path(__file__).parent / "templates" / "charts.mplstyle"
Line = tuple[str, list[tuple[float, float]]]  # name, points
Chart = tuple[str, str]  # what a screen reader says, data URI


def line_chart(title: str, x_label: str, lines: list[Line]) -> Chart:
    """Named lines of one point or more, those of one name in one colour.

    The y axis is logarithmic where values span a factor of 50.
    """
    with matplotlib.rc_context(fname=STYLE):
        figure = Figure((4.2, 2.8), layout="constrained")
        axes = figure.subplots()
        names = list(dict.fromkeys(name for name, _ in lines))
        handles = {}
        for name, points in lines:
            handles[name] = axes.plot(*zip(*points, strict=True), f"C{names.index(name) % 10}")[0]
        values = [y for _, points in lines for _, y in points]
        if min(values) > 0 and max(values) / min(values) > 50:
            axes.set_yscale("log")
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.set_xlabel(x_label)
        axes.set_title(title, loc="left", fontsize=9, fontweight="bold")
        if len(names) > 1:
            axes.legend(handles.values(), names, frameon=False, fontsize=8)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return title, data_uri("image/svg+xml", buffer.getvalue())


def data_uri(kind: str, data: bytes) -> str:
    """A file of a MIME type as an address that holds it."""
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def curves(row: Row) -> list[Chart]:
    """Charts of every training's losses, alpha, learning rate ... and of mIoU over the threshold.

    A line for each seed.
    """
    charts = []
    for stage in dict.fromkeys(name for p in row.seeds for name in p.logs):
        logs = [p.logs[stage] for p in row.seeds if p.logs.get(stage)]
        keys = dict.fromkeys(key for log in logs for each in log for key in each)
        x = "epoch" if all("epoch" in each for log in logs for each in log) else "step"
        losses = [key for key in keys if key not in (*OWN_CHART, "step", "epoch")]
        for title, names in (("losses", losses), *((t, [key]) for key, t in OWN_CHART.items())):
            lines = [
                (name, [(each[x], each[name]) for each in log if name in each])
                for name in names
                for log in logs
            ]
            charts.append((f"{stage}: {title}", x, lines))
    sweeps = [(name, scores["sweep"]) for p in row.seeds for name, scores in p.scores.items()]
    charts.append(("mIoU over the background threshold", "background threshold", sweeps))
    drawn = [(title, x, [line for line in lines if line[1]]) for title, x, lines in charts]
    return [line_chart(*chart) for chart in drawn if chart[2]]
