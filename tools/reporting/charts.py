"""Line charts as SVG data URIs: training curves and threshold sweeps."""

import base64
import contextlib
import io
import sys
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from core.data import visual
from tools.reporting.collect import Row

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

OWN_CHART = {
    "alpha": "alpha",
    "lr": "learning rate",
    "peak": "peak of the present classes' maps",
    "ap": "average precision on held-out images",
}
COLOURS = 10  # of the lines of a chart
STYLE = Path(__file__).parent / "templates" / "charts.mplstyle"
Line = tuple[str, list[tuple[float, float]]]  # name, points
Chart = tuple[str, str]  # what a screen reader says, data URI


@contextlib.contextmanager
def style() -> Iterator[None]:
    """The charts' style, in fonts that have the letters of the class names where there are some."""
    fonts = {"font.family": visual.installed_fonts()}
    with matplotlib.rc_context(fonts, STYLE), warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield
    others = [each for each in found if "missing from" not in str(each.message)]
    if len(others) < len(found):
        print(visual.NO_FONT, file=sys.stderr)
    for each in others:
        warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)


def line_chart(title: str, x_label: str, lines: list[Line]) -> Chart:
    """Named lines of one point or more, those of one name in one colour.

    The y axis is logarithmic where values span a factor of 50.
    """
    with style():
        figure = Figure((4.2, 2.8), layout="constrained")
        axes = figure.subplots()
        names = list(dict.fromkeys(name for name, _ in lines))
        handles = {}
        for name, points in lines:
            handles[name] = axes.plot(
                *zip(*points, strict=True), f"C{names.index(name) % COLOURS}"
            )[0]
        values = [y for _, points in lines for _, y in points]
        if min(values) > 0 and max(values) / min(values) > 50:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")  # not in TeX, which the style leaves unread
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=x_label in ("epoch", "step")))
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


def _drawn(keys: Iterable[str]) -> list[str]:
    """Those of a log that have a line; of many classes their mean alone."""
    keys = [key for key in dict.fromkeys(keys) if key not in ("step", "epoch")]
    classes = [key for key in keys if key.startswith("ap/")]
    return [key for key in keys if len(classes) < COLOURS or key not in classes]


def _name(key: str) -> str:
    """A line's, from a key of the log."""
    return "mean" if key == "ap" else key.removeprefix("ap/")


def curves(row: Row) -> list[Chart]:
    """Charts of every training's losses, alpha, learning rate ... and of mIoU over the threshold.

    A line for each seed.
    """
    charts: dict[tuple[str, str], list[Line]] = {}  # title, label of the x axis -> lines
    for stage, records in row.records.items():
        logs = [record["log"] for record in records]
        x = "epoch" if all("epoch" in each for log in logs for each in log) else "step"
        for title in ("losses", *OWN_CHART.values()):
            charts[f"{stage}: {title}", x] = [
                (_name(key), [(each[x], each[key]) for each in log if key in each])
                for log in logs
                for key in _drawn(key for each in log for key in each)
                if OWN_CHART.get(key.split("/")[0], "losses") == title
            ]
    sweeps = [(name, found["sweep"]) for p in row.seeds for name, found in p.scores.items()]
    sweeps = [line for line in sweeps if line[1]]
    charts["mIoU over the background threshold", "background threshold"] = sweeps
    return [line_chart(title, x, lines) for (title, x), lines in charts.items() if lines]
