"""The paper's tables, mIoU in percent on VOC 2012, with our runs beside the published figures.

Source: Jo and Yu, "Puzzle-CAM: Improved localization via matching partial and full features",
ICIP 2021 (arXiv 2101.11253), Tables 1 to 3; what they cite there for AffinityNet, IRNet and SEAM.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field

from core import recipe
from core.data.datasets import VOC_CLASSES
from tools import steps
from tools.reporting import summarise
from tools.reporting.collect import VARIANTS, Family, Row

SOURCE = "Jo and Yu, Puzzle-CAM, ICIP 2021, arXiv 2101.11253"
HEAD = ["Row", "Measure", "Paper", "Ours", "Difference", "Seeds", "Cost", "BN batch"]
RELEASED = "hr_cam"  # the map whose score the paper prints as its CAM's; scored on request
OTHER = "* other data than the paper's: the difference says nothing about it"
IMAGES = {"val": recipe.DATA.val_images, "test": recipe.DATA.test_images}  # else those of train
Figures = dict[str, float]  # evaluation (cam, rw, pseudo, val, test) -> mIoU


@dataclass(frozen=True)
class Table:
    """One of the paper's tables.

    Attributes:
        rows: (variant, backbone) -> published figures; others: of other methods, by their names.
        given: the evaluations, in order; without any those of the steps on train. decimals: as
        printed there.
    """

    title: str
    rows: dict[tuple[str, str], Figures]
    note: str
    others: dict[str, Figures] = field(default_factory=dict)
    given: tuple[str, ...] = ()
    decimals: int = 2

    @property
    def measures(self) -> dict[str, str]:
        """Evaluation -> heading."""
        titled = {s.figures: s.title for s in steps.STEPS if s.title and s.split == "train"}
        return {name: titled.get(name, name) for name in self.given or titled}

    @property
    def of_losses(self) -> bool:
        """Whether its rows are choices of loss terms: the one that scores nothing but CAMs."""
        return self.given == ("cam",)


def _walk(cam: float, rw: float, pseudo: float) -> Figures:
    return {"cam": cam, "rw": rw, "pseudo": pseudo}


TABLES = (
    Table(
        title="Table 1: the losses, mIoU of the CAMs on train (ResNet-50)",
        rows={
            ("cls", "resnet50"): {"cam": 47.82},
            ("p_cls", "resnet50"): {"cam": 47.70},
            ("re", "resnet50"): {"cam": 49.21},
            ("all", "resnet50"): {"cam": 51.53},
        },
        note="People who re-ran the authors' released code report 48.53 for all three terms.",
        given=("cam",),
    ),
    Table(
        title="Table 2: the pseudo-labels, mIoU on train",
        rows={
            ("all", "resnet50"): _walk(51.53, 64.16, 64.70),
            ("all", "resnest50"): _walk(57.59, 69.48, 69.91),
            ("all", "resnest101"): _walk(61.85, 71.92, 72.46),
            ("all", "resnest269"): _walk(62.45, 74.14, 74.67),
        },
        note="People who re-ran the authors' released code report 48.53 for the CAMs of the "
        "ResNet-50 and 65.42 after the random walk.",
        others={"AffinityNet": _walk(47.82, 58.10, 59.70)},
    ),
    Table(
        title="Table 3: the segmentation network, mIoU",
        rows={
            ("all", "resnet50"): {},
            ("all", "resnest101"): {"val": 66.9, "test": 67.7},
            ("all", "resnest269"): {"val": 71.9, "test": 72.2},
        },
        note="The test set is scored by the VOC server alone; tools/export_voc.py makes the "
        "submission. Its answer, kept as test.json with a `miou`, is shown here.",
        others={
            "AffinityNet": {"val": 61.7, "test": 63.7},
            "IRNet": {"val": 63.5, "test": 64.8},
            "SEAM": {"val": 64.5, "test": 65.7},
        },
        given=("val", "test"),
        decimals=1,
    ),
)


def tables(families: list[Family]) -> list[tuple[str, summarise.Cells, list[str]]]:
    """Title, lines and notes of the tables that a run of ours stands in; of all without runs."""
    result = []
    for table in TABLES:
        lines, notes = [], []
        found = list(_rows(table, families))
        for name, paper, row in found:
            lines += _lines(table, name, paper, row)
            notes += [f"{name}: {line}" for line in summarise.problems(row)] if row else []
        notes.append(table.note)
        if any("*" in line[HEAD.index("Difference")] for line in lines):
            notes.append(OTHER)
        if not families or any(row for *_, row in found):
            result.append((table.title, (HEAD, lines), notes))
    return result


def _rows(table: Table, families: list[Family]) -> Iterator[tuple[str, Figures, Row | None]]:
    """Name, published figures and our runs: other methods, the paper's rows, then more of ours."""
    for name, paper in table.others.items():
        yield name, paper, None
    ours: dict[tuple[str, str], list[Row]] = {key: [] for key in table.rows}
    own = [name for name in table.measures if name != "cam"] or ["cam"]
    for row in (row for family in families for row in family.rows if row.variant):
        key = row.variant, row.backbone
        wanted = table.measures if key in table.rows else own
        fails_here = row.failed and (row.variant == "all" or table.of_losses)
        if fails_here or any(map(row.values, wanted)):
            ours.setdefault(key, []).append(row)
    for key, found in ours.items():
        for row in found or [None]:
            where = f" ({row.path})" if row and len(found) > 1 else ""
            yield row_name(*key, table.of_losses) + where, table.rows.get(key, {}), row


def row_name(variant: str, backbone: str, of_losses: bool) -> str:
    """Of a row: its losses, in the table that compares them (with a ResNet-50), or its backbone."""
    network = backbone.replace("resnet", "ResNet-").replace("resnest", "ResNeSt-")
    title = "Puzzle-CAM" if variant == "all" and not of_losses else VARIANTS[variant].losses
    return title if of_losses and backbone == "resnet50" else f"{title}, {network}"


def _lines(table: Table, name: str, paper: Figures, row: Row | None) -> list[list[str]]:
    """A line for each measure; what holds for all of them stands in the first."""
    measures = table.measures
    if row and row.values(RELEASED) and "cam" in measures:
        measures = {"cam": measures["cam"], RELEASED: f"{measures['cam']} ({RELEASED})"} | measures
    lines: list[list[str]] = []
    for key, heading in measures.items():
        values = row.values(key) if row else []
        published, printed, difference = paper.get("cam" if key == RELEASED else key), "", ""
        if published is not None:
            printed = f"{published:.{table.decimals}f}"
        if values and published is not None:
            star = "" if _is_voc(row, key) else " *"
            difference = f"{statistics.mean(values) - published:+.2f}{star}"
        ours = summarise.mean(values) or _missing(table, name, row, key)
        lines.append(["", heading, printed, ours, difference, "", "", ""])
    lines[0][0] = name
    if row:
        lines[0][5:] = [_seeds(row, table), *_cost(row, table)]
    return lines


def _missing(table: Table, name: str, row: Row | None, evaluation: str) -> str:
    """What stands in the place of a figure that is not there."""
    if row is None:
        return "" if name in table.others else "not run"
    if row.failed == len(row.seeds):
        return "failed"
    made = any(s.figures == evaluation and s.name in row.records for s in steps.STEPS)
    return "not scored" if made else "not run"


def _is_voc(row: Row, evaluation: str) -> bool:
    """Whether the paper scored the same images. A server's answer holds a mIoU alone."""
    images = IMAGES.get(evaluation, recipe.DATA.train_images)
    told = [scores for scores in row.scores(evaluation) if scores["iou"].keys() - {"background"}]
    return all(
        [name for name in scores["iou"] if name != "background"] == list(VOC_CLASSES)
        and scores.get("images") == images
        for scores in told
    )


def _seeds(row: Row, table: Table) -> str:
    scored = sum(any(m in p.scores for m in table.measures) for p in row.seeds)
    total = f"{len(row.seeds)} seed{'s' if len(row.seeds) > 1 else ''}"
    if row.failed:
        return f"{row.failed} of {total} failed"
    return total if scored == len(row.seeds) else f"{scored} of {total} scored so far"


def _cost(row: Row, table: Table) -> tuple[str, str]:
    """Machine, time and GPU memory of the steps on the way to a table's figures; the BN batch."""
    needed = {s.name for s in steps.STEPS if s.figures in table.measures}
    for step in reversed(steps.STEPS):
        needed |= {read for _, read in step.reads} if step.name in needed else set()
    records = [r for name, each in row.records.items() if name in needed for r in each]
    seconds = sum(record["seconds"] for record in records)
    seconds /= sum(bool(p.records) for p in row.seeds) or 1
    took = summarise.duration(seconds) + (" a seed" if len(row.seeds) > 1 else "")
    parts = (summarise.machine(records), took, summarise.peak(records, "gpu"))
    batches = (p.classifier["resolved"].get("bn_batch") for p in row.seeds)
    return ", ".join(filter(None, parts)) if seconds else "", summarise.unique(batches)
