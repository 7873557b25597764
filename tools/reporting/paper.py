"""The paper's tables, mIoU in percent on VOC 2012, with our runs beside the published figures.

Source: Jo and Yu, "Puzzle-CAM: Improved localization via matching partial and full features",
ICIP 2021 (arXiv 2101.11253), Tables 1 to 3; what they cite there for AffinityNet, IRNet and SEAM.
"""

import re
import statistics
from typing import NamedTuple

from core import recipe, steps
from core.data.datasets import VOC_CLASSES
from core.run.messages import duration
from tools.reporting import summarise
from tools.reporting.collect import VARIANTS, Family, Row

SOURCE = "Jo and Yu, Puzzle-CAM, ICIP 2021, arXiv 2101.11253"
PUBLISHED = {  # (variant, backbone), or the name of another method: evaluation -> mIoU
    ("cls", "resnet50"): {"cam": 47.82},
    ("p_cls", "resnet50"): {"cam": 47.70},
    ("re", "resnet50"): {"cam": 49.21},
    ("all", "resnet50"): {"cam": 51.53, "rw": 64.16, "pseudo": 64.70},
    ("all", "resnest50"): {"cam": 57.59, "rw": 69.48, "pseudo": 69.91},
    ("all", "resnest101"): {"cam": 61.85, "rw": 71.92, "pseudo": 72.46, "val": 66.9, "test": 67.7},
    ("all", "resnest269"): {"cam": 62.45, "rw": 74.14, "pseudo": 74.67, "val": 71.9, "test": 72.2},
    "AffinityNet": {"cam": 47.82, "rw": 58.10, "pseudo": 59.70, "val": 61.7, "test": 63.7},
    "IRNet": {"val": 63.5, "test": 64.8},
    "SEAM": {"val": 64.5, "test": 65.7},
}
HEAD = ["Row", "Measure", "Paper", "Ours", "Difference", "Seeds", "Cost", "BN batch"]
RELEASED = "hr_cam"  # the map whose score the paper prints as its CAM's; scored on request
OTHER = "* other data than the paper's: the difference says nothing about it"
IMAGES = {"val": recipe.DATA.val_images, "test": recipe.DATA.test_images}  # else those of train
Key = tuple[str, str] | str  # of PUBLISHED


class Table(NamedTuple):
    """One of the paper's tables."""

    title: str
    rows: list[Key]
    note: str
    given: tuple[str, ...] = ()  # the evaluations, in order; else those of the steps on train
    decimals: int = 2  # as printed there

    @property
    def measures(self) -> dict[str, str]:
        """Evaluation -> heading."""
        titled = {s.figures: s.title for s in steps.STEPS if s.title and s.split == "train"}
        return {name: titled.get(name, name) for name in self.given or titled}

    @property
    def of_losses(self) -> bool:
        """Whether its rows are choices of loss terms: the one that scores nothing but CAMs."""
        return self.given == ("cam",)


TABLES = (
    Table(
        "Table 1: the losses, mIoU of the CAMs on train (ResNet-50)",
        [(variant, "resnet50") for variant in ("cls", "p_cls", "re", "all")],
        "People who re-ran the authors' released code report 48.53 for all three terms.",
        ("cam",),
    ),
    Table(
        "Table 2: the pseudo-labels, mIoU on train",
        ["AffinityNet", *(key for key in PUBLISHED if "all" in key)],
        "People who re-ran the authors' released code report 48.53 for the CAMs of the "
        "ResNet-50 and 65.42 after the random walk.",
    ),
    Table(
        "Table 3: the segmentation network, mIoU",
        ["AffinityNet", "IRNet", "SEAM"]
        + [("all", backbone) for backbone in ("resnet50", "resnest101", "resnest269")],
        "The test set is scored by the VOC server alone; tools/export_voc.py makes the "
        "submission. Its answer, kept as test.json with a `miou`, is shown here.",
        ("val", "test"),
        decimals=1,
    ),
)


def tables(families: list[Family]) -> list[tuple[str, summarise.Cells, list[str]]]:
    """Title, lines and notes of the tables that a run of ours stands in; of all without runs.

    The lines: other methods, the paper's rows, then more of ours. Runs on other data than VOC stand
    in them only as rows of tools/tables.py, with seeds: to those who made one run of their own
    pictures VOC's figures say nothing.
    """
    result = []
    rows = [row for family in families for row in family.rows]
    known = [row for row in rows if row.variant and (_is_seeded(row) or _is_on_voc(row))]
    for table in TABLES:
        ours: dict[Key, list[Row]] = {key: [] for key in table.rows}
        for row in known:
            if _belongs(row, table):
                ours.setdefault((row.variant, row.backbone), []).append(row)
        lines, notes = [], []
        for key, found in ours.items():
            for row in found or [None]:
                name = _name(key, table) + (f" ({row.path})" if row and len(found) > 1 else "")
                lines += _lines(table, key, name, row)
                notes += [f"{name}: {line}" for line in summarise.problems(row)] if row else []
        notes.append(table.note)
        if any("*" in line[HEAD.index("Difference")] for line in lines):
            notes.append(OTHER)
        if not rows or any(ours.values()):
            result.append((table.title, (HEAD, lines), notes))
    return result


def _belongs(row: Row, table: Table) -> bool:
    """Whether a row of ours has figures for a table, or failed on the way to them."""
    if row.failed and (row.variant == "all" or table.of_losses):
        return True
    own = [m for m in table.measures if m != "cam"] or ["cam"]  # what no other table shows
    listed = (row.variant, row.backbone) in table.rows
    return any(map(row.values, table.measures if listed else own))


def _name(key: Key, table: Table) -> str:
    """Of a row: its losses, in the table that compares them (with a ResNet-50), or its backbone."""
    if isinstance(key, str):
        return key
    variant, backbone = key
    network = backbone.replace("resnet", "ResNet-").replace("resnest", "ResNeSt-")
    title = "Puzzle-CAM" if variant == "all" and not table.of_losses else VARIANTS[variant][0]
    return title if table.of_losses and backbone == "resnet50" else f"{title}, {network}"


def _lines(table: Table, key: Key, name: str, row: Row | None) -> list[list[str]]:
    """A line for each measure; what holds for all of them stands in the first."""
    measures, made = table.measures, set()
    missing = "" if isinstance(key, str) else "not run"
    if row and row.values(RELEASED) and "cam" in measures:
        measures = {"cam": measures["cam"], RELEASED: f"{measures['cam']} ({RELEASED})"} | measures
    if row and row.failed == len(row.seeds):
        missing = "failed"
    elif row:
        made = {step.figures for step in steps.STEPS if step.name in row.records}
    lines: list[list[str]] = []
    for measure, heading in measures.items():
        values = row.values(measure) if row else []
        paper = PUBLISHED.get(key, {}).get("cam" if measure == RELEASED else measure)
        printed = "" if paper is None else f"{paper:.{table.decimals}f}"
        difference = f"{statistics.mean(values) - paper:+.2f}" if printed and values else ""
        if difference and not _is_voc(row, measure):
            difference += " *"
        ours = summarise.mean(values) or ("not scored" if measure in made else missing)
        lines.append(["", heading, printed, ours, difference, "", "", ""])
    lines[0][0] = name
    if row:
        lines[0][5:] = _details(row, table)
    return lines


def _is_voc(row: Row, evaluation: str) -> bool:
    """Whether the paper scored the same images. A server's answer holds a mIoU alone."""
    images = IMAGES.get(evaluation, recipe.DATA.train_images)
    told = [({*s["iou"]} - {"background"}, s.get("images")) for s in row.scores(evaluation)]
    return all(not names or (names, n) == ({*VOC_CLASSES}, images) for names, n in told)


def _is_on_voc(row: Row) -> bool:
    """Whether nothing that is scored of a row has other classes or images than the paper's."""
    return all(_is_voc(row, name) for p in row.seeds for name in p.scores)


def _is_seeded(row: Row) -> bool:
    """Whether a row lies where tools/tables.py puts them."""
    return any(re.fullmatch(r"seed\d+", p.name) for p in row.seeds)


def _details(row: Row, table: Table) -> list[str]:
    """Seeds; machine, time and GPU memory of the steps on the way to the figures; BN batch."""
    seeds = f"{len(row.seeds)} seed{'s' if len(row.seeds) > 1 else ''}"
    scored = sum(any(m in p.scores for m in table.measures) for p in row.seeds)
    if row.failed:
        seeds = f"{row.failed} of {seeds} failed"
    elif scored < len(row.seeds):
        seeds = f"{scored} of {seeds} scored so far"
    needed = {s.name for s in steps.STEPS if s.figures in table.measures}
    for step in reversed(steps.STEPS):
        needed |= {read for _, read in step.reads} if step.name in needed else set()
    records = [r for name, each in row.records.items() if name in needed for r in each]
    seconds = sum(r["seconds"] for r in records) / max(1, sum(bool(p.records) for p in row.seeds))
    took = duration(seconds) + (" a seed" if len(row.seeds) > 1 else "")
    machine = summarise.unique((record["machine"] for record in records), " / ")
    parts = (machine, took, summarise.peak(records, "gpu"))
    trained = (r for each in row.records.values() for r in each if "p_cls" in r["settings"])
    batch = summarise.unique(r["resolved"].get("bn_batch") for r in trained)
    return [seeds, ", ".join(filter(None, parts)) if seconds else "", batch]
