"""What the report says, before it becomes HTML or Markdown."""

from __future__ import annotations

from dataclasses import dataclass, field

from tools.reporting import summarise
from tools.reporting.collect import Folder, Group, mapping, number
from tools.reporting.gallery import Choice, Gallery, galleries
from tools.reporting.published import TABLES, Table

OTHER_DATA = "* other data than the paper's: the difference says nothing about its figure"
Columns = list[tuple[str, list[Folder], str]]


@dataclass
class Block:
    """A table of the paper, or a run outside the tables.

    Attributes:
        rows: of a table. scores: of another run, (headings, lines).
        columns: (heading, seeds, evaluation) of the table of IoU per class.
        runs: (name, seeds) to draw curves of. galleries: name of a run -> (seed, gallery).
    """

    title: str
    rows: list[summarise.Row] | None = None
    scores: tuple[list[str], list[list[str]]] | None = None
    notes: list[str] = field(default_factory=list)
    columns: Columns = field(default_factory=list)
    runs: list[tuple[str, list[Folder]]] = field(default_factory=list)
    galleries: dict[str, list[tuple[str, Gallery]]] = field(default_factory=dict)


@dataclass
class Report:
    """Everything; `warnings` are the files that were left out."""

    title: str
    blocks: list[Block]
    warnings: list[str]


def build(groups: list[Group], choice: Choice, warnings: list[str]) -> Report:
    """Tables of every group that has some, then the other runs; all "not run" without any."""
    blocks = []
    with_tables = [group for group in groups if group.tables]
    for group in with_tables or [Group(groups[0].root)]:
        suffix = f" ({group.root})" if len(with_tables) > 1 else ""
        for table in TABLES:
            found = group.tables.get(table.key, {})
            blocks.append(_table(table, found, suffix, choice, warnings))
    for group in groups:
        for folder in group.others:
            blocks.append(_other(folder, choice, warnings))
    return Report("Puzzle-CAM: results", blocks, list(dict.fromkeys(warnings)))


def _table(
    table: Table, found: dict[str, list[Folder]], suffix: str, choice: Choice, warnings: list[str]
) -> Block:
    block = Block(table.title + suffix, rows=summarise.rows(table, found), notes=[table.note])
    if any("*" in m.difference for row in block.rows for m in row.measures):
        block.notes.append(OTHER_DATA)
    for row in block.rows:
        if not row.folders:
            continue
        block.runs.append((row.name, row.folders))
        for measure, heading in table.measures.items():
            name = row.name if len(table.measures) == 1 else f"{row.name}, {heading}"
            block.columns.append((name, row.folders, measure))
        # One seed's pictures are enough: the first that got anywhere.
        for folder in row.folders:
            pictures = galleries(folder, choice, warnings)
            if pictures:
                block.galleries[row.name] = [(folder.name, each) for each in pictures]
                break
        data = summarise.data_line(row.folders)
        note = f"Data of our rows: {data}" if data else ""
        if note and note not in block.notes:
            block.notes.append(note)
    return block


def _other(folder: Folder, choice: Choice, warnings: list[str]) -> Block:
    """A run outside the tables: its scores, costs and commands in one list."""
    lines = []
    for name, scores in folder.scores.items():
        threshold = number(scores.get("threshold"))
        split = mapping(mapping(scores.get("run")).get("settings")).get("split", "?")
        shown = "-" if threshold is None else f"{threshold:.2f}"
        lines.append([name, str(split), f"{scores['miou']:.2f}", shown, str(scores.get("images"))])
    head = ["evaluation", "split", "mIoU", "threshold", "images"]
    block = Block(f"Other run: {folder.path}", scores=(head, lines), runs=[(folder.name, [folder])])
    cost = summarise.cost([folder])
    batch = summarise.bn_batch([folder])
    data = summarise.data_line([folder])
    if cost:
        block.notes.append(f"Cost: {cost}" + (f"; BN batch {batch}" if batch else ""))
    if data:
        block.notes.append(f"Data: {data}")
    if folder.failed is not None:
        block.notes.append(f"failed: {folder.failed}")
    unfinished = [n for n, record in folder.stages.items() if record.get("finished") is not True]
    if unfinished:
        block.notes.append(f"not finished: {', '.join(unfinished)}")
    block.columns = [(name, [folder], name) for name in folder.scores]
    pictures = galleries(folder, choice, warnings)
    block.galleries[folder.name] = [(folder.name, each) for each in pictures]
    return block


def class_table(columns: Columns) -> tuple[list[str], dict[str, list[float | None]]]:
    """Headings, and class -> IoU per column, of the columns that have any."""
    values = [(name, summarise.class_ious(seeds, measure)) for name, seeds, measure in columns]
    values = [(name, each) for name, each in values if each]
    classes = dict.fromkeys(c for _, each in values for c in each)
    return [name for name, _ in values], {c: [e.get(c) for _, e in values] for c in classes}
