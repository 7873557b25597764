"""The ratios as a bar chart, a PNG."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from core.data.images import write_png

INK, MUTED, GRID, PAPER = (25, 25, 25), (120, 120, 120), (225, 225, 225), (255, 255, 255)
MET, MISSED, OTHER = (52, 128, 88), (201, 104, 48), (104, 134, 170)
LINE, HEAD, FOOT, LEFT, PLOT, RIGHT = 30, 62, 44, 410, 700, 110


def draw_chart(rows: list[dict[str, Any]], path: Path) -> None:
    """One bar a row on a logarithmic axis, the target a black mark; bars start at 1."""
    top = max(max(row["ratio"], row["target"] or 1) for row in rows)
    low = min(0, math.floor(math.log10(min(row["ratio"] for row in rows))))
    decades = max(1, math.ceil(math.log10(top * 1.01)))
    page = Image.new("RGB", (LEFT + PLOT + RIGHT, HEAD + LINE * len(rows) + FOOT), PAPER)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(15)

    def across(ratio: float) -> float:
        return LEFT + PLOT * (math.log10(ratio) - low) / (decades - low)

    bottom = HEAD + LINE * len(rows)
    for power in range(low, decades + 1):
        x = across(10.0**power)
        draw.line((x, HEAD, x, bottom), MUTED if power == 0 else GRID, 1)
        draw.text((x, bottom + 14), f"{10.0**power:g}x", MUTED, font, anchor="mm")
    where = " and ".join(sorted({row["machine"] for row in rows}))
    title = "How many times better than the usual way"
    draw.text((16, 20), title, INK, ImageFont.load_default(19), anchor="lm")
    draw.text((16, 44), f"{where}; the mark is the target", MUTED, font, anchor="lm")
    for number, row in enumerate(rows):
        _bar(draw, row, HEAD + LINE * number, across, font)
    write_png(path, np.array(page))


def _bar(draw: ImageDraw.ImageDraw, row: dict[str, Any], y: int, across: Any, font: Any) -> None:
    ratio, target = row["ratio"], row["target"]
    colour = OTHER if target is None else MET if ratio >= target else MISSED
    label = f"{row['stage']} ({row['device']})"
    draw.text((LEFT - 12, y + LINE / 2), label, INK, font, anchor="rm")
    left, right = sorted((across(1), across(ratio)))
    draw.rectangle((left, y + 5, max(right, left + 1), y + LINE - 5), fill=colour)
    if target is not None:
        x = across(target)
        draw.line((x, y + 2, x, y + LINE - 2), INK, 3)
    x = max(right, across(target or 1)) + 8
    draw.text((x, y + LINE / 2), f"{ratio:.3g}x", INK, font, anchor="lm")
