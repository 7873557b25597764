"""Templates filled in: everything is escaped for what it goes into."""

import html
import re
from pathlib import Path
from typing import Any

from core.data import visual
from tools.reporting import charts, paper, summarise

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup


def page(name: str, **content: Any) -> str:
    """Text for a terminal, Markdown, or a self-contained page: a template filled in.

    Args:
        name: of the template, in `templates/`. content: what it speaks of; a name that is missing
        is an error.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=not name.endswith(".txt"),
        finalize=markdown_text if name.endswith(".md") else None,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals |= {"charts": charts, "summarise": summarise, "source": paper.SOURCE}
    environment.globals |= {"fenced": fenced, "palette": visual.PALETTE.tolist()}
    return environment.get_template(name).render(**content)


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
