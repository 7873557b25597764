"""The report as text for a terminal, as one self-contained HTML page and as Markdown."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from core.data import visual
from tools.reporting import charts, paper, summarise
from tools.reporting.collect import Family


def text(family: Family) -> str:
    """A family's results, stages and failures for a terminal."""
    cells = (summarise.results(family), summarise.stages(family))
    parts = [family.name, *(text_table(*each) for each in cells if each[1])]
    return "\n\n".join([*parts, *summarise.notes(family)]) + "\n"


def text_table(head: list[str], lines: list[list[str]]) -> str:
    """Columns with two spaces between them, the first to the left, the others to the right."""
    columns = []
    for column in zip(head, *lines, strict=True):
        just, width = str.rjust if columns else str.ljust, max(map(len, column))
        columns.append([just(cell, width) for cell in column])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def page(template: str, **content: Any) -> str:
    """One self-contained page, readable without JavaScript at any width; or its Markdown twin.

    Args:
        template: page.html or report.md. content: families, tables, warnings (what was left out),
        galleries by the families' names.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        finalize=markdown_text if template.endswith(".md") else None,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    known = {"charts": charts, "summarise": summarise, "source": paper.SOURCE, "fenced": fenced}
    known["palette"] = [tuple(colour) for colour in visual.PALETTE.tolist()]
    return environment.get_template(template).render(**known, **content)


def markdown_text(value: Any) -> Markup:
    """Text that Markdown and HTML leave as it is, on one line; Markup stays."""
    if isinstance(value, Markup):
        return value
    line = html.escape(re.sub(r"[\x00-\x1f\x7f]+", " ", str(value)), quote=False)
    return Markup(re.sub(r"([\\`*\[\]|])", r"\\\1", line))


def fenced(lines: list[str]) -> Markup:
    """A block of commands, behind a fence longer than any in them."""
    code = "\n\n".join(lines)
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", code))])
    return Markup(f"{fence}sh\n{code}\n{fence}")
