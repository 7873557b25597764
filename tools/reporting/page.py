"""The report as one self-contained HTML page; readable without JavaScript, at any width."""

from __future__ import annotations

from html import escape
from pathlib import Path

from core.data import visual
from tools.reporting import charts, summarise
from tools.reporting.collect import Folder
from tools.reporting.content import Block, Report, class_table
from tools.reporting.gallery import Gallery
from tools.reporting.published import SOURCE

HEADINGS = ("Row", "Measure", "Paper", "Ours", "Difference", "Cost", "BN batch")
STYLE = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")
SCRIPT = (Path(__file__).parent / "filter.js").read_text(encoding="utf-8")


def page(report: Report) -> str:
    """The whole document."""
    body = [f"<h1>{escape(report.title)}</h1>", f"<p>Published figures: {escape(SOURCE)}.</p>"]
    links = [(f"part{i}", block.title) for i, block in enumerate(report.blocks)]
    items = "".join(f'<li><a href="#{i}">{escape(title)}</a></li>' for i, title in links)
    body.append(f"<nav><ul>{items}</ul></nav>")
    if report.warnings:
        lines = "".join(f"<li>{escape(line)}</li>" for line in report.warnings)
        body.append(f'<section class="warn"><h2>Left out</h2><ul>{lines}</ul></section>')
    for (anchor, _), block in zip(links, report.blocks, strict=True):
        body.append(_block(anchor, block))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(report.title)}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + f"\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _block(anchor: str, block: Block) -> str:
    parts = [f'<section id="{anchor}"><h2>{escape(block.title)}</h2>']
    if block.rows is not None:
        parts.append(_main_table(block.rows))
    if block.scores is not None:
        parts.append(_plain_table(*block.scores))
    parts += [f'<p class="note">{escape(note)}</p>' for note in block.notes]
    names, table = class_table(block.columns)
    if table:
        parts.append(f"<h3>IoU per class</h3>{_class_table(names, table)}")
    is_first = True  # the first run that has something to show is open
    for name, folders in block.runs:
        shown = [_curves(name, folders, is_first)]
        for where, each in block.galleries.get(name, []):
            title = name if where == name else f"{name}, {where}"
            shown.append(_gallery(title, each, is_first))
        is_first = is_first and not any(shown)
        parts += filter(None, shown)
    return "\n".join([*parts, "</section>"])


def _main_table(rows: list[summarise.Row]) -> str:
    lines = []
    for row in rows:
        lines += [
            f"<tr{' class=first' * (i == 0)}>{_cells(row, i)}</tr>"
            for i in range(len(row.measures))
        ]
        for line in row.problems:
            lines.append(f'<tr><td class="problem" colspan="7">{escape(line)}</td></tr>')
        if row.folders and (written := summarise.commands(row.folders[0])):
            lines.append(f'<tr><td class="more" colspan="7">{_commands(row, written)}</td></tr>')
    numbers = ("Paper", "Ours", "Difference")
    head = "".join(
        f"<th{' class=n' if heading in numbers else ''}>{heading}</th>" for heading in HEADINGS
    )
    return f'<table class="cards"><thead><tr>{head}</tr></thead>\n' + "\n".join(lines) + "</table>"


def _cells(row: summarise.Row, i: int) -> str:
    """The cells of a row's i-th measure; what holds for all of them stands at the first."""
    measure, n = row.measures[i], len(row.measures)
    cells = [
        _cell("Measure", measure.heading),
        _cell("Paper", measure.published, "n"),
        _cell("Ours", measure.ours or row.missing, "n ours" if measure.ours else "n none"),
        _cell("Difference", measure.difference, "n"),
    ]
    if i == 0:
        status = f'<small class="status">{escape(row.status)}</small>'
        cells.insert(0, f'<th scope="row" rowspan="{n}">{escape(row.name)}{status}</th>')
        cells.append(_cell("Cost", summarise.cost(row.folders), rows=n))
        cells.append(_cell("BN batch", summarise.bn_batch(row.folders), rows=n))
    return "".join(cells)


def _cell(label: str, value: str, kind: str = "", rows: int = 1) -> str:
    """A cell; narrow screens put the label before it, and leave it out where it is empty."""
    kind = f"{kind} empty" if value in ("", "-") else kind
    return (
        f'<td class="{kind.strip()}" data-label="{label}" rowspan="{rows}">'
        f"{escape(value) or '-'}</td>"
    )


def _commands(row: summarise.Row, written: list[str]) -> str:
    seed = escape(row.folders[0].name)
    return f"<details><summary>Commands of {seed}</summary>{_code(written)}</details>"


def _code(lines: list[str]) -> str:
    return "<pre>" + "\n\n".join(escape(line) for line in lines) + "</pre>"


def _plain_table(head: list[str], lines: list[list[str]]) -> str:
    top = "".join(f"<th>{escape(each)}</th>" for each in head)
    rows = [
        "<tr>"
        + "".join(
            f'<td data-label="{escape(h)}">{escape(v)}</td>'
            for h, v in zip(head, line, strict=True)
        )
        + "</tr>"
        for line in lines
    ]
    return f'<table class="cards"><thead><tr>{top}</tr></thead>{"".join(rows)}</table>'


def _class_table(names: list[str], table: dict[str, list[float | None]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    rows = []
    for name, values in table.items():
        cells = "".join(map(_iou_cell, values))
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{cells}</tr>')
    inside = f"<table><thead><tr><th>class</th>{head}</tr></thead>{''.join(rows)}</table>"
    return f'<div class="scroll">{inside}</div>'


def _iou_cell(value: float | None) -> str:
    if value is None:
        return '<td class="n none">-</td>'
    shade = f"background:rgba(21,128,61,{value / 250:.2f})"
    return f'<td class="n" style="{shade}">{value:.1f}</td>'


def _curves(name: str, folders: list[Folder], is_open: bool) -> str:
    sweep = charts.sweeps(folders, "mIoU over the background threshold")
    drawn = charts.curves(folders) + ([sweep] if sweep else [])
    if not drawn:
        return ""
    state = " open" if is_open else ""
    title = f"Curves: {name}" + (f", {len(folders)} seeds" if len(folders) > 1 else "")
    inside = f'<div class="charts">{"".join(drawn)}</div>'
    return f"<details{state}><summary>{escape(title)}</summary>{inside}</details>"


def _gallery(title: str, gallery: Gallery, is_open: bool) -> str:
    """Images under their sections; `data-classes` and `data-overall` are for the filter."""
    present = sorted({c for entry in gallery.entries for c in entry.classes})
    swatches = "".join(
        f'<span><i style="background:rgb{tuple(visual.PALETTE[c].tolist())}"></i>'
        f"{escape(gallery.classes[c - 1])}</span>"
        for c in present
    )
    choices = "".join(
        f'<option value="{c}">{escape(gallery.classes[c - 1])}</option>' for c in present
    )
    select = (
        '<label class="filter" hidden>Show <select><option value="overall">best, median and worst '
        f'of all</option><option value="">every image here</option>{choices}</select></label>'
    )
    order = "a sample; there is no ground truth"
    if gallery.n_images:
        order = f"{gallery.n_images} images, ordered by the IoU of {gallery.ranked_by}"
    parts, section = [], ""
    for entry in gallery.entries:
        if entry.section != section:
            section = entry.section
            parts.append(f"<h4>{escape(section)}</h4>")
        pictures = "".join(_picture(*cell) for cell in entry.cells if cell[1] is not None)
        overall = ' data-overall="1"' if entry.overall else ""
        parts.append(
            f'<article data-classes="{" ".join(map(str, entry.classes))}"{overall}>'
            f"<p><b>{escape(entry.image_id)}</b> {escape(', '.join(entry.tags))}</p>"
            f'<div class="strip">{pictures}</div></article>'
        )
    summary = f"Gallery: {title}, {gallery.split} ({order})"
    widest = max(
        (sum(uri is not None for _, uri, _ in e.cells) for e in gallery.entries), default=0
    )
    pairs = " pairs" if widest <= 3 else ""  # short strips stand two abreast
    return (
        f'<details{" open" if is_open else ""} class="gallery"><summary>{escape(summary)}</summary>'
        f'{select}<div class="key">{swatches}</div><div class="images{pairs}">{"".join(parts)}'
        "</div></details>"
    )


def _picture(title: str, uri: str | None, iou: float | None) -> str:
    caption = escape(title) + ("" if iou is None else f"<br>IoU {iou:.1f}")
    image = f'<img src="{uri}" alt="{escape(title)}" loading="lazy">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"
