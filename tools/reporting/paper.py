"""Our runs in the paper's tables: which row they are, beside its figure, at what cost."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from core.data.datasets import VOC_CLASSES
from tools import steps
from tools.reporting import summarise
from tools.reporting.collect import Family, Row, mapping, number
from tools.reporting.published import IMAGES, TABLES, Figures, Table, row_name
from tools.reporting.summarise import Cells

HEAD = ["Row", "Measure", "Paper", "Ours", "Difference", "Seeds", "Cost", "BN batch"]
RELEASED = "hr_cam"  # the map whose score the paper prints as its CAM's; scored on request
OTHER = "* other data than the paper's: the difference says nothing about it"


@dataclass
class PaperTable:
    """One of the paper's tables with our rows in it, and what a reader must know."""

    title: str
    cells: Cells
    notes: list[str]


def tables(families: list[Family]) -> list[PaperTable]:
    """The paper's tables that a run of ours stands in; all, where there are no runs."""
    result = []
    for table in TABLES:
        lines, notes = [], []
        found = list(_rows(table, families))
        for name, paper, row in found:
            lines += _lines(table, name, paper, row)
            notes += [f"{name}: {line}" for line in summarise.problems(row)] if row else []
        starred = any("*" in line[4] for line in lines)
        if not families or any(row for *_, row in found):
            notes += [table.note, *([OTHER] if starred else [])]
            result.append(PaperTable(table.title, (HEAD, lines), notes))
    return result


def _rows(table: Table, families: list[Family]) -> Iterator[tuple[str, Figures, Row | None]]:
    """Name, published figures and our runs: other methods, the paper's rows, then more of ours."""
    for name, paper in table.others.items():
        yield name, paper, None
    ours: dict[tuple[str, str], list[Row]] = {key: [] for key in table.rows}
    own = [name for name in table.measures if name != "cam"] or ["cam"]
    for row in (row for family in families for row in family.rows if row.variant):
        key = row.variant, row.backbone
        failed = any(p.failed is not None for p in row.seeds)
        wanted = table.measures if key in table.rows else own
        if any(map(row.values, wanted)) or (failed and (row.variant == "all" or table.of_losses)):
            ours.setdefault(key, []).append(row)
    for key, found in ours.items():
        name = row_name(*key, table.of_losses)
        for row in found or [None]:
            where = f" ({row.path})" if row and len(found) > 1 else ""
            yield name + where, table.rows.get(key, {}), row


def _lines(table: Table, name: str, paper: Figures, row: Row | None) -> list[list[str]]:
    """A line for each measure; what holds for all of them stands in the first."""
    measures = table.measures
    if row is not None and row.values(RELEASED) and "cam" in measures:
        measures = {"cam": measures["cam"], RELEASED: f"{measures['cam']} ({RELEASED})"} | measures
    lines: list[list[str]] = []
    for key, heading in measures.items():
        values = [] if row is None else row.values(key)
        published, difference = paper.get("cam" if key == RELEASED else key), ""
        if row is not None and values and published is not None:
            star = "" if _is_voc(row, key) else " *"
            difference = f"{statistics.mean(values) - published:+.2f}{star}"
        printed = "" if published is None else f"{published:.{table.decimals}f}"
        ours = summarise.mean(values) or _missing(table, name, row, key)
        lines.append([name if not lines else "", heading, printed, ours, difference, "", "", ""])
    if row is not None:
        lines[0][5:] = [_seeds(row, table), *_cost(row, table)]
    return lines


def _missing(table: Table, name: str, row: Row | None, evaluation: str) -> str:
    """What stands in the place of a figure that is not there."""
    if row is None:
        return "" if name in table.others else "not run"
    if all(p.failed is not None for p in row.seeds):
        return "failed"
    step = next((s for s in steps.STEPS if s.figures == evaluation), None)
    return "not scored" if step is not None and row.having(step) else "not run"


def _is_voc(row: Row, evaluation: str) -> bool:
    """Whether the paper scored the same images. A server's answer holds a mIoU alone."""
    counted = IMAGES.get(evaluation, IMAGES["train"])
    for scores in (p.scores[evaluation] for p in row.seeds if p.miou(evaluation) is not None):
        names = [name for name in mapping(scores.get("iou")) if name != "background"]
        if names and (names != list(VOC_CLASSES) or scores.get("images") != counted):
            return False
    return True


def _seeds(row: Row, table: Table) -> str:
    failed = sum(p.failed is not None for p in row.seeds)
    scored = sum(any(p.miou(m) is not None for m in table.measures) for p in row.seeds)
    total = f"{len(row.seeds)} seed{'s' if len(row.seeds) > 1 else ''}"
    if failed:
        return f"{failed} of {total} failed"
    return total if scored == len(row.seeds) else f"{scored} of {total} scored so far"


def _cost(row: Row, table: Table) -> tuple[str, str]:
    """Machine, time and GPU memory of the steps on the way to a table's figures; the BN batch."""
    needed = {s.name for s in steps.STEPS if s.figures in table.measures}
    for step in reversed(steps.STEPS):
        needed |= {read for _, read in step.reads} if step.name in needed else set()
    records = [r for n, each in summarise.records_of(row).items() if n in needed for r in each]
    seconds = sum(number(record.get("seconds")) or 0 for record in records)
    seconds /= sum(bool(p.records) for p in row.seeds) or 1
    took = summarise.duration(seconds) + (" a seed" if len(row.seeds) > 1 else "")
    parts = (summarise.machine(records), took, summarise.peak(records, ("gpu",)))
    batches = (mapping(p.classifier.get("resolved")).get("bn_batch") for p in row.seeds)
    return ", ".join(filter(None, parts)) if seconds else "", summarise.unique(batches)
