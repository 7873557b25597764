"""Line charts as inline SVG: training curves and threshold sweeps."""

from __future__ import annotations

import html
import math
from dataclasses import dataclass

from tools.reporting.collect import Folder, mapping, number

COLOURS = ("#0b5cad", "#c2410c", "#15803d", "#7e22ce", "#a16207", "#be123c", "#0f766e", "#475569")
WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 12, 34
MAX_POINTS = 300
OWN_CHART = {"alpha": "alpha", "lr": "learning rate", "peak": "peak of the present classes' maps"}


@dataclass
class Series:
    """A line; lines of one name share a colour and a place in the key."""

    name: str
    points: list[tuple[float, float]]


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers between low and high."""
    raw = (high - low) / count or 1.0
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def line_chart(title: str, x_label: str, series: list[Series]) -> str:
    """A <figure> with the lines; the y axis is logarithmic where values span a factor of 50."""
    series = [Series(s.name, _thin(s.points)) for s in series if s.points]
    if not series:
        return ""
    xs = [x for s in series for x, _ in s.points]
    ys = [y for s in series for _, y in s.points]
    is_log = min(ys) > 0 and max(ys) / min(ys) > 50
    if is_log:
        y_low, y_high = math.log10(min(ys)), math.log10(max(ys))
        marks = [float(i) for i in range(math.ceil(y_low), math.floor(y_high) + 1)]
    else:
        y_low, y_high = min(ys), max(ys)
        margin = 0.05 * (y_high - y_low) or 0.5
        y_low = 0.0 if 0 <= y_low < 0.3 * y_high else y_low - margin
        y_high += margin
        marks = ticks(y_low, y_high)
    x_low, x_high = min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1

    def place(x: float, y: float) -> tuple[float, float]:
        y = math.log10(y) if is_log else y
        across, up = (x - x_low) / (x_high - x_low), (y - y_low) / (y_high - y_low)
        return (
            LEFT + across * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM),
        )

    parts = []
    for mark in marks:
        y = place(x_low, 10**mark if is_log else mark)[1]
        label = f"{10**mark:g}" if is_log else f"{mark:.4g}"
        parts.append(
            f'<line class="g" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(f'<text x="{LEFT - 5}" y="{y + 3.5:.1f}" text-anchor="end">{label}</text>')
    for mark in ticks(x_low, x_high):
        x, y = place(mark, ys[0])[0], HEIGHT - BOTTOM
        parts.append(f'<line class="g" x1="{x:.1f}" x2="{x:.1f}" y1="{y}" y2="{y + 4}"/>')
        parts.append(f'<text x="{x:.1f}" y="{y + 15}" text-anchor="middle">{mark:.4g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    label = html.escape(x_label)
    parts.append(f'<text x="{middle:.0f}" y="{HEIGHT - 4}" text-anchor="middle">{label}</text>')
    names = list(dict.fromkeys(s.name for s in series))
    for each in series:
        path = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in each.points)
        colour = COLOURS[names.index(each.name) % len(COLOURS)]
        parts.append(f'<polyline points="{path}" stroke="{colour}"/>')
    return _figure(title, names, parts)


def _figure(title: str, names: list[str], parts: list[str]) -> str:
    key = "".join(
        f'<span><i style="background:{COLOURS[i % len(COLOURS)]}"></i>{html.escape(name)}</span>'
        for i, name in enumerate(names)
    )
    shown = html.escape(title)
    return (
        f'<figure class="chart"><figcaption>{shown}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{shown}">'
        f'{"".join(parts)}</svg><div class="key">{key}</div></figure>'
    )


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    step = -(-len(points) // MAX_POINTS)
    kept = points[::step]
    return kept if kept[-1:] == points[-1:] else [*kept, points[-1]]


def curves(folders: list[Folder]) -> list[str]:
    """Charts of the losses, alpha, learning rate ... of every training; a line per seed."""
    charts = []
    for stage in dict.fromkeys(name for folder in folders for name in folder.logs):
        logs = [folder.logs[stage] for folder in folders if folder.logs.get(stage)]
        keys = list(dict.fromkeys(key for log in logs for row in log for key in row))
        x = "epoch" if all("epoch" in row for log in logs for row in log) else "step"
        losses = [k for k in keys if k not in OWN_CHART and k not in ("step", "epoch")]
        wanted = [(f"{stage}: losses", losses)]
        wanted += [(f"{stage}: {t}", [k]) for k, t in OWN_CHART.items() if k in keys]
        for title, names in wanted:
            lines = [
                Series(name, [(row[x], row[name]) for row in log if name in row])
                for name in names
                for log in logs
            ]
            charts.append(line_chart(title, x, lines))
    return [chart for chart in charts if chart]


def sweeps(folders: list[Folder], title: str) -> str:
    """A chart of mIoU over the background threshold of every evaluation; a line per seed."""
    lines = []
    for folder in folders:
        for name, scores in folder.scores.items():
            sweep = scores.get("sweep")
            rows = [mapping(row) for row in sweep] if isinstance(sweep, list) else []
            points = [(number(row.get("threshold")), number(row.get("miou"))) for row in rows]
            lines.append(Series(name, [p for p in points if None not in p]))
    return line_chart(title, "background threshold", lines)
