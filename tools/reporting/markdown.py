"""The report's Markdown twin: every table and command; curves and galleries are in the HTML."""

from __future__ import annotations

import re

from tools.reporting import summarise
from tools.reporting.content import Block, Report, class_table
from tools.reporting.published import SOURCE

HEADINGS = ["Row", "Measure", "Paper", "Ours", "Difference", "Seeds", "Cost", "BN batch"]


def markdown(report: Report) -> str:
    """The whole document."""
    parts = [f"# {text(report.title)}", f"Published figures: {text(SOURCE)}."]
    parts.append("Curves, threshold sweeps and galleries: `index.html` beside this file.")
    if report.warnings:
        parts.append("## Left out\n\n" + "\n".join(f"- {text(w)}" for w in report.warnings))
    for block in report.blocks:
        parts += _block(block)
    return "\n\n".join(parts) + "\n"


def text(value: str) -> str:
    """Text that Markdown and HTML leave as it is, on one line."""
    value = re.sub(r"[\x00-\x1f\x7f]+", " ", str(value))
    value = value.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*\[\]|])", r"\\\1", value)


def table(head: list[str], lines: list[list[str]]) -> str:
    """A table of escaped cells."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _block(block: Block) -> list[str]:
    parts = [f"## {text(block.title)}"]
    if block.rows is not None:
        lines = [_line(row, i) for row in block.rows for i in range(len(row.measures))]
        parts.append(table(HEADINGS, lines))
        problems = [f"- {text(f'{r.name}: {p}')}" for r in block.rows for p in r.problems]
        parts += ["\n".join(problems)] if problems else []
    if block.scores is not None:
        head, lines = block.scores
        parts.append(table([text(h) for h in head], [[text(v) for v in line] for line in lines]))
    parts += [text(note) for note in block.notes]
    names, classes = class_table(block.columns)
    if classes:
        lines = [
            [text(name), *("-" if v is None else f"{v:.1f}" for v in values)]
            for name, values in classes.items()
        ]
        parts.append("### IoU per class\n\n" + table(["class", *map(text, names)], lines))
    written = [(n, f[0].name, c) for n, f in block.runs if (c := summarise.commands(f[0]))]
    if written:
        parts.append("### Commands")
    for name, seed, lines in written:
        code = "\n\n".join(lines)
        fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", code)), 3)
        parts.append(f"{text(name)}, {text(seed)}:\n\n{fence}sh\n{code}\n{fence}")
    return parts


def _line(row: summarise.Row, i: int) -> list[str]:
    measure = row.measures[i]
    return [
        text(row.name),
        text(measure.heading),
        measure.published,
        text(measure.ours or row.missing),
        text(measure.difference) or "-",
        text(row.status),
        text(summarise.cost(row.folders)) or "-",
        text(summarise.bn_batch(row.folders)) or "-",
    ]
