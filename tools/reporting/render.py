"""The report as text for a terminal, as one self-contained HTML page and as Markdown."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tools.reporting import charts, summarise
from tools.reporting.collect import Family
from tools.reporting.published import SOURCE
from tools.reporting.summarise import Cells

TEMPLATES = Path(__file__).parent / "templates"


def text(family: Family) -> str:
    """A family's results, stages and failures for a terminal."""
    cells = (summarise.results(family), summarise.stages(family))
    parts = [family.name, *(text_table(each) for each in cells if each[1])]
    return "\n\n".join([*parts, *summarise.notes(family)]) + "\n"


def text_table(cells: Cells) -> str:
    """Columns with two spaces between them, the first to the left, the others to the right."""
    columns = []
    for i, column in enumerate(zip(cells[0], *cells[1], strict=True)):
        width = max(map(len, column))
        columns.append([cell.rjust(width) if i else cell.ljust(width) for cell in column])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def html(**content: Any) -> str:
    """One self-contained page; readable without JavaScript, at any width.

    Args:
        content: families, tables, warnings (what was left out), galleries by the families' names.
    """
    page = _environment()
    for name in ("style.css", "filter.js"):  # our own, not to be escaped
        source = (TEMPLATES / name).read_text(encoding="utf-8")
        page.globals[name.replace(".", "_")] = Markup(source)
    return page.get_template("page.html").render(**content)


def markdown(**content: Any) -> str:
    """Every table and command; curves and galleries are in the page. For content see `html`."""
    twin = _environment(finalize=lambda value: Markup(markdown_text(value)))
    twin.globals |= {"table": markdown_table, "fenced": fenced}
    return twin.get_template("report.md").render(**content) + "\n"


def _environment(**options: Any) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **options,
    )
    environment.globals |= {"charts": charts, "summarise": summarise, "source": SOURCE}
    return environment


def markdown_text(value: Any) -> str:
    """Text that Markdown and HTML leave as it is, on one line; Markup stays."""
    if isinstance(value, Markup):
        return value
    text = re.sub(r"[\x00-\x1f\x7f]+", " ", str(value))
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*\[\]|])", r"\\\1", text)


def markdown_table(cells: Cells) -> Markup:
    """A table of escaped cells."""
    rows = [[markdown_text(each) for each in row] for row in (cells[0], *cells[1])]
    rows = [[row[0], *(each or "-" for each in row[1:])] for row in rows]
    rows.insert(1, ["---"] * len(rows[0]))
    return Markup("\n".join(f"| {' | '.join(row)} |" for row in rows))


def fenced(lines: list[str]) -> Markup:
    """A block of commands, behind a fence longer than any in them."""
    code = "\n\n".join(lines)
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", code))])
    return Markup(f"{fence}sh\n{code}\n{fence}")
