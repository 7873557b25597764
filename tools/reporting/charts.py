"""Line charts as SVG data URIs: training curves and threshold sweeps."""

from __future__ import annotations

import base64
import io

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tools.reporting.collect import Row, mapping, number

OWN_CHART = {"alpha": "alpha", "lr": "learning rate", "peak": "peak of the present classes' maps"}
STYLE = {
    "svg.fonttype": "none",  # text stays text: a tenth of the bytes
    "svg.hashsalt": "puzzle-cam",  # the same runs, the same page
    "text.parse_math": False,  # names may hold a $
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#ddd",
}
Points = list[tuple[float, float]]
Chart = tuple[str, str]  # what a screen reader says, data URI


def line_chart(title: str, x_label: str, lines: list[tuple[str, Points]]) -> Chart | None:
    """Named lines, those of one name in one colour; None without points.

    The y axis is logarithmic where values span a factor of 50.
    """
    lines = [(name, points) for name, points in lines if points]
    if not lines:
        return None
    with matplotlib.rc_context(STYLE):
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
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return title, f"data:image/svg+xml;base64,{encoded}"


def curves(row: Row) -> list[Chart]:
    """Charts of the losses, alpha, learning rate ... of every training; a line per seed."""
    charts = []
    for stage in dict.fromkeys(name for pipeline in row.seeds for name in pipeline.logs):
        logs = [p.logs[stage] for p in row.seeds if p.logs.get(stage)]
        keys = list(dict.fromkeys(key for log in logs for each in log for key in each))
        x = "epoch" if all("epoch" in each for log in logs for each in log) else "step"
        losses = [k for k in keys if k not in OWN_CHART and k not in ("step", "epoch")]
        wanted = [(f"{stage}: losses", losses)]
        wanted += [(f"{stage}: {t}", [k]) for k, t in OWN_CHART.items() if k in keys]
        for title, names in wanted:
            lines = [
                (name, [(each[x], each[name]) for each in log if name in each])
                for name in names
                for log in logs
            ]
            charts.append(line_chart(title, x, lines))
    return [chart for chart in [*charts, sweep(row)] if chart is not None]


def sweep(row: Row) -> Chart | None:
    """mIoU over the background threshold of every evaluation; a line per seed."""
    lines = []
    for pipeline in row.seeds:
        for name, scores in pipeline.scores.items():
            found = scores.get("sweep")
            rows = [mapping(each) for each in found] if isinstance(found, list) else []
            points = [(number(each.get("threshold")), number(each.get("miou"))) for each in rows]
            lines.append((name, [p for p in points if None not in p]))
    return line_chart("mIoU over the background threshold", "background threshold", lines)
