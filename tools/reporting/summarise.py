"""Figures of runs as tables of text: results, the paper's tables, stages, IoU per class."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Iterable
from typing import Any

from tools import steps
from tools.reporting.collect import Family, Pipeline, Row, mapping, number
from tools.reporting.published import VARIANTS
from tools.steps import Step

Cells = tuple[list[str], list[list[str]]]  # headings, rows
METRICS = {"pseudo": "rw_crf", "val": "segmentation_val"}  # names metrics.json always had


def title(row: Row) -> str:
    """What a row is called beside its siblings: its losses' name, else its folder's."""
    return VARIANTS[row.variant].title if row.variant else row.seeds[0].path.resolve().name


def label(row: Row, step: Step) -> str:
    """What a step's result is called: CAMs by their classifier, later steps by their own title."""
    if step.split != "train":
        return f"{step.title}, {step.split}"
    is_cam = step == next((s for s in steps.STEPS if s.makes_cams), None)
    return title(row) if row.variant and is_cam else step.title


def mean(values: list[float]) -> str:
    """Mean, and standard deviation over the seeds where there are several; "" of none."""
    if not values:
        return ""
    text = f"{statistics.mean(values):.2f}"
    return text if len(values) == 1 else f"{text} ± {statistics.stdev(values):.2f}"


def unique(values: Iterable[Any], separator: str = ", ") -> str:
    """The values as text, each once, without None."""
    return separator.join(dict.fromkeys(str(v) for v in values if v is not None))


def evaluations(row: Row) -> dict[str, str]:
    """Evaluation -> label of all a row has, in the steps' order; others by their own names."""
    scored = {name for p in row.seeds for name in p.scores}
    known = {s.figures: label(row, s) for s in steps.STEPS if s.title and s.figures in scored}
    return known | {name: name for name in sorted(scored - known.keys())}


def results(family: Family) -> Cells:
    """A line for every evaluation; the change is against the step before, of CAMs the first row's.

    It is left out between figures of different images.
    """
    head = ["", "mIoU", "change", "threshold", "map", "split", "images", "seeds"]
    lines, seen = [], {}
    for row in family.rows:
        before = None
        for name, text in evaluations(row).items():
            values = row.values(name)
            found = [p.scores[name] for p in row.seeds if p.miou(name) is not None]
            runs = [mapping(mapping(each.get("run")).get("settings")) for each in found]
            split = unique(run.get("split") for run in runs)
            images = unique(each.get("images") for each in found)
            base = before or seen.get(name)
            change = ""
            if base and base[1:] == (split, images):
                change = f"{statistics.mean(values) - base[0]:+.2f}"
            before = statistics.mean(values), split, images
            seen.setdefault(name, before)
            chosen = (number(each.get("threshold")) for each in found)
            threshold = unique(sorted(f"{t:.2f}" for t in chosen if t is not None))
            maps = unique(each.get("map") for each in found)
            seeds = str(len(values)) if len(row.seeds) > 1 else ""
            lines.append([text, mean(values), change, threshold, maps, split, images, seeds])
    return without_empty(head, lines)


def without_empty(head: list[str], lines: list[list[str]]) -> Cells:
    """The table without the columns that have nothing in them, but for the first."""
    kept = [i for i in range(len(head)) if i == 0 or any(line[i] for line in lines)]
    return [head[i] for i in kept], [[line[i] for i in kept] for line in lines]


def stages(family: Family) -> Cells:
    """What every step took; seconds are a mean over the seeds."""
    head = ["stage", "script", "time", "machine", "memory", "state"]
    lines, total = [], 0.0
    for row in family.rows:
        whose = f" ({title(row)})" if row.variant not in ("", "all") else ""
        for name, records in records_of(row).items():
            seconds = [number(r.get("seconds")) or 0.0 for r in records]
            total += sum(seconds)
            took = duration(statistics.mean(seconds))
            script = unique(r.get("stage") for r in records)
            finished = sum(r.get("finished") is True for r in records)
            state = "" if finished == len(records) else f"{finished} of {len(records)} finished"
            what = name + whose, script, took, machine(records), peak(records), state
            lines.append(list(what))
    if lines:
        lines.append(["together", "", duration(total), "", "", ""])
    return without_empty(head, lines)


def records_of(row: Row) -> dict[str, list[dict[str, Any]]]:
    """Directory -> the run.json of every seed that has it."""
    names = dict.fromkeys(name for p in row.seeds for name in p.records)
    return {n: [p.records[n] for p in row.seeds if n in p.records] for n in names}


def machine(records: list[dict[str, Any]]) -> str:
    """What the steps ran on, and on how many of it."""
    devices = []
    for record in records:
        device = str(record.get("device_name") or record.get("device") or "?")
        processes = number(record.get("processes")) or 1
        devices.append(f"{processes:.0f} x {device}" if processes > 1 else device)
    return unique(devices, " / ")


def peak(records: list[dict[str, Any]], kinds: tuple[str, ...] = ("gpu", "cpu")) -> str:
    """The largest memory a process took: the GPU's, or where there is none the CPU's."""
    for kind in kinds:
        sizes = [mapping(r.get("results")).get(f"peak_{kind}_bytes") for r in records]
        if any(number(size) for size in sizes):
            return f"{max(number(size) or 0 for size in sizes) / 2**30:.1f} GiB"
    return ""


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def metrics(families: list[Family]) -> dict[str, Any]:
    """mIoU by name and seconds by directory; of several families by their names."""
    result = {}
    for family in families:
        figures: dict[str, Any] = {}
        seconds: dict[str, float] = {}
        for row in family.rows:
            suffix = {"": "", "all": "", "cls": "_plain"}.get(row.variant, f"_{row.variant}")
            for name in evaluations(row):
                figures[METRICS.get(name, name) + suffix] = statistics.mean(row.values(name))
            for name, records in records_of(row).items():
                took = [number(r.get("seconds")) or 0.0 for r in records]
                seconds[name + suffix] = statistics.mean(took)
        result[family.name] = figures | {"seconds": seconds}
    return result if len(result) != 1 else next(iter(result.values()))


def problems(row: Row) -> list[str]:
    """A line for each failed seed, and one for what differs between seeds beside the seed."""
    lines = [f"{p.name} failed: {p.failed}" for p in row.seeds if p.failed is not None]
    changed = []
    for name, records in records_of(row).items():
        settings = [mapping(record.get("settings")) for record in records]
        for option in sorted({key for each in settings for key in each} - {"seed"}):
            if any(each.get(option) != settings[0].get(option) for each in settings):
                changed.append(f"{name}.{option}")
    if changed:
        lines.append(f"the seeds differ in more than the seed: {', '.join(changed)}")
    return lines


def notes(family: Family) -> list[str]:
    """Data, failures and what is missing, a line each."""
    seeds = [p for row in family.rows for p in row.seeds]
    counts = {len(mapping(each.get("iou"))) - 1 for p in seeds for each in p.scores.values()}
    n_classes = unique(f"{n} classes" for n in sorted(counts) if n > 0)
    data = ", ".join(filter(None, (unique(p.data or None for p in seeds), n_classes)))
    lines = [f"Data: {data}"] if data else []
    if not any(p.scores for p in seeds):
        lines.append("Nothing is scored; evaluate.py --json RUNS/<step>.json does it given masks")
    return lines + [f"{title(row)}: {line}" for row in family.rows for line in problems(row)]


def commands(pipeline: Pipeline) -> list[str]:
    """The command lines of steps and evaluations, in the order they were started."""
    order = sorted(pipeline.records.values(), key=lambda record: str(record.get("started", "")))
    lines = [record.get("argv") for record in order]
    lines += [mapping(scores.get("run")).get("argv") for scores in pipeline.scores.values()]
    written = [shlex.join(["python", *map(str, argv)]) for argv in lines if isinstance(argv, list)]
    return list(dict.fromkeys(written))


def class_ious(family: Family) -> Cells:
    """IoU per class of every evaluation, a mean over the seeds that have it."""
    columns: dict[str, dict[str, str]] = {}
    for row in family.rows:
        for name, text in evaluations(row).items():
            found = [mapping(p.scores.get(name, {}).get("iou")) for p in row.seeds]
            column = {}
            for each in dict.fromkeys(c for ious in found for c in ious):
                values = [v for ious in found if (v := number(ious.get(each))) is not None]
                column[each] = f"{statistics.mean(values):.1f}" if values else ""
            if column:
                columns[text if text not in columns else f"{text} ({title(row)})"] = column
    classes = dict.fromkeys(c for column in columns.values() for c in column)
    lines = [[each, *(column.get(each, "") for column in columns.values())] for each in classes]
    return ["class", *columns], lines
