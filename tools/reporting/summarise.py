"""The rows of a table: paper, ours over the seeds, difference, cost, BN batch, commands."""

from __future__ import annotations

import shlex
import statistics
from dataclasses import dataclass, field

from core.data.datasets import VOC_CLASSES
from tools.reporting.collect import Folder, mapping, number
from tools.reporting.published import Table


@dataclass
class Measure:
    """One figure of a row: `values` holds a mIoU per seed that has one."""

    heading: str
    paper: float | None
    values: list[float] = field(default_factory=list)
    comparable: bool = True
    decimals: int = 2

    @property
    def published(self) -> str:
        """The paper's figure, as it is printed there."""
        return "-" if self.paper is None else f"{self.paper:.{self.decimals}f}"

    @property
    def ours(self) -> str:
        """Mean, and standard deviation over the seeds where there are several."""
        if not self.values:
            return ""
        mean = f"{statistics.mean(self.values):.2f}"
        if len(self.values) == 1:
            return mean
        return f"{mean} ± {statistics.stdev(self.values):.2f}"

    @property
    def difference(self) -> str:
        """Ours minus the paper's, signed; starred on other data than the paper's."""
        if self.paper is None or not self.values:
            return ""
        star = "" if self.comparable else " *"
        return f"{statistics.mean(self.values) - self.paper:+.2f}{star}"


@dataclass
class Row:
    """A row of a table, ready to be shown.

    Attributes:
        status: why figures are missing ("not run", "another method" ...), or how many seeds.
        problems: one line per failed seed, and what differs between seeds beside the seed.
    """

    key: str
    name: str
    folders: list[Folder]
    measures: list[Measure]
    status: str
    problems: list[str] = field(default_factory=list)

    @property
    def missing(self) -> str:
        """What stands in the place of a figure that is not there."""
        if not self.folders:
            return "not run" if self.key else "-"
        return "failed" if all(f.failed is not None for f in self.folders) else "not scored"


def rows(table: Table, found: dict[str, list[Folder]]) -> list[Row]:
    """All rows: other methods, the paper's rows, then ours that the paper does not have."""
    result = []
    for name, paper in table.others.items():
        measures = [
            Measure(heading, paper.get(key), decimals=table.decimals)
            for key, heading in table.measures.items()
        ]
        result.append(Row("", name, [], measures, "another method"))
    extra = {key: key for key in found if key not in table.rows}
    for key, name in {**table.rows, **extra}.items():
        result.append(_row(table, key, name, found.get(key, [])))
    return result


def _row(table: Table, key: str, name: str, folders: list[Folder]) -> Row:
    paper, measures = table.paper.get(key, {}), []
    for measure, heading in table.measures.items():
        scores = [f.scores[measure] for f in folders if f.miou(measure) is not None]
        like_paper = all(_is_voc(each, table.images[measure]) for each in scores)
        values = [float(each["miou"]) for each in scores]
        measures.append(Measure(heading, paper.get(measure), values, like_paper, table.decimals))
    problems = [f"{f.name} failed: {f.failed}" for f in folders if f.failed is not None]
    tests = [f for f in folders if f.test_failed is not None]
    problems += [f"{f.name}, the test submission failed: {f.test_failed}" for f in tests]
    changed = differing_settings(folders)
    if changed:
        problems.append(f"the seeds differ in more than the seed: {', '.join(changed)}")
    return Row(key, name, folders, measures, _status(folders), problems)


def _is_voc(scores: dict, images: int) -> bool:
    names = [name for name in mapping(scores.get("iou")) if name != "background"]
    # A server's answer for test holds a mIoU alone.
    return not names or (names == list(VOC_CLASSES) and scores.get("images") == images)


def _status(folders: list[Folder]) -> str:
    if not folders:
        return "not run"
    failed = sum(f.failed is not None for f in folders)
    scored = sum(bool(f.scores) for f in folders)
    total = f"{len(folders)} seed{'s' if len(folders) > 1 else ''}"
    if failed:
        return f"{failed} of {total} failed"
    return total if scored == len(folders) else f"{scored} of {total} scored so far"


def differing_settings(folders: list[Folder]) -> list[str]:
    """`stage.option` of every setting but the seed that is not the same in all folders."""
    changed = []
    for stage in sorted({name for f in folders for name in f.stages}):
        each = [mapping(f.stages[stage].get("settings")) for f in folders if stage in f.stages]
        for option in sorted({key for settings in each for key in settings} - {"seed"}):
            if any(settings.get(option) != each[0].get(option) for settings in each):
                changed.append(f"{stage}.{option}")
    return changed


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def cost(folders: list[Folder]) -> str:
    """Device, time per seed, and the largest GPU memory any stage took."""
    devices, totals, peak = [], [], 0.0
    for folder in folders:
        seconds = 0.0
        for record in folder.stages.values():
            if record.get("stage") == "random_walk":
                continue  # its time is that of make_pseudo_labels.py, which writes both
            seconds += number(record.get("seconds")) or 0
            peak = max(peak, number(mapping(record.get("results")).get("peak_gpu_bytes")) or 0)
            device = str(record.get("device_name") or record.get("device") or "?")
            processes = number(record.get("processes")) or 1
            devices.append(f"{processes:.0f} x {device}" if processes > 1 else device)
        if seconds:
            totals.append(seconds)
    if not totals:
        return ""
    memory = f", {peak / 2**30:.1f} GiB" if peak else ""
    each = " a seed" if len(folders) > 1 else ""
    names = " / ".join(dict.fromkeys(devices))
    return f"{names}, {duration(statistics.mean(totals))}{each}{memory}"


def bn_batch(folders: list[Folder]) -> str:
    """How many images a BatchNorm of the classifier saw at a time."""
    seen = [
        mapping(record.get("resolved")).get("bn_batch")
        for folder in folders
        for record in folder.stages.values()
        if record.get("stage") == "train_classification"
    ]
    return ", ".join(dict.fromkeys(str(each) for each in seen if each is not None))


def commands(folder: Folder) -> list[str]:
    """The command lines of the stages and evaluations, in the order they were started."""
    records = [(str(r.get("started", "")), r.get("argv")) for r in folder.stages.values()]
    lines = [argv for _, argv in sorted(records, key=lambda each: each[0])]
    lines += [mapping(scores.get("run")).get("argv") for scores in folder.scores.values()]
    written = [shlex.join(["python", *map(str, argv)]) for argv in lines if isinstance(argv, list)]
    return list(dict.fromkeys(written))


def class_ious(folders: list[Folder], measure: str) -> dict[str, float | None]:
    """Class name -> IoU, averaged over the seeds where the class occurs."""
    values: dict[str, list[float]] = {}
    for folder in folders:
        for name, value in mapping(folder.scores.get(measure, {}).get("iou")).items():
            values.setdefault(name, [])
            if number(value) is not None:
                values[name].append(float(value))
    return {name: statistics.mean(each) if each else None for name, each in values.items()}


def data_line(folders: list[Folder]) -> str:
    """Which data the figures come from: the data roots, images and classes scored."""
    parts = []
    for folder in folders:
        roots = [mapping(r.get("arguments")).get("data") for r in folder.stages.values()]
        root = next((str(r) for r in roots if r), "?")
        for scores in folder.scores.values():
            names = mapping(scores.get("iou"))
            if names:
                split = mapping(mapping(scores.get("run")).get("settings")).get("split", "?")
                parts.append(
                    f"{root}, {split}: {scores.get('images', '?')} images, {len(names) - 1} classes"
                )
    return "; ".join(dict.fromkeys(parts))
