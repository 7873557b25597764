"""Pictures for people: heat maps, coloured label maps, overlays, legends and labelled grids.

Every picture is a uint8 RGB array (H, W, 3).
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from core.data import images
from core.data.images import IGNORE, voc_palette

PALETTE = np.array(voc_palette(), np.uint8).reshape(256, 3)
PALETTE[IGNORE] = (255, 250, 240)  # the palette's own 255 looks like a class; on paper it is blank
INK, MUTED, PAPER, BLANK = (25, 25, 25), (150, 150, 150), (255, 255, 255), (240, 240, 240)


def heat_map(image: np.ndarray, score: np.ndarray, opacity: float = 0.55) -> np.ndarray:
    """A photograph under a float (H, W) score in 0..1: blue is low, red is high.

    Raises:
        ValueError: the sizes differ.
    """
    _check_size(image, score)
    steps = np.rint(255 * np.nan_to_num(np.clip(score, 0, 1))).astype(np.uint8)
    colours = cv2.applyColorMap(steps, cv2.COLORMAP_JET)[..., ::-1]
    return cv2.addWeighted(image, 1 - opacity, np.ascontiguousarray(colours), opacity, 0)


def colour_label(label: np.ndarray) -> np.ndarray:
    """A uint8 (H, W) label map in VOC's colours: background black, 255 (ignore) cream."""
    return PALETTE[label]


def overlay(image: np.ndarray, label: np.ndarray, opacity: float = 0.6) -> np.ndarray:
    """A photograph with its uint8 (H, W) label map over it; the background stays as it is.

    Raises:
        ValueError: the sizes differ.
    """
    _check_size(image, label)
    blended = cv2.addWeighted(image, 1 - opacity, colour_label(label), opacity, 0)
    return np.where((label == 0)[..., None], image, blended)


def legend(names: Sequence[str], columns: int = 4) -> np.ndarray:
    """The colours of the background and of the classes `names` (label 1, 2, ...)."""
    font = ImageFont.load_default(16)
    entries = ["background", *names]
    columns = min(columns, len(entries))
    width = 44 + max(int(font.getlength(name)) for name in entries)
    lines = -(-len(entries) // columns)
    page = Image.new("RGB", (columns * width + 8, lines * 26 + 8), PAPER)
    draw = ImageDraw.Draw(page)
    for label, name in enumerate(entries):
        x, y = 8 + label // lines * width, 8 + label % lines * 26
        draw.rectangle((x, y, x + 24, y + 17), fill=tuple(PALETTE[label].tolist()), outline=MUTED)
        draw.text((x + 31, y + 9), name, INK, font, anchor="lm")
    return np.array(page)


def grid(
    rows: Sequence[Sequence[np.ndarray | None]],
    titles: Sequence[str],
    captions: Sequence[Sequence[str]] | None = None,
    side: int = 192,
) -> np.ndarray:
    """Pictures of any size in rows under column titles.

    Args:
        rows: a picture or None (drawn as "-") per cell, as many per row as there are titles.
        captions: a line of text under each picture.
        side: the cells' side in pixels; pictures are fitted into it.

    Raises:
        ValueError: a row has more or fewer cells than there are titles.
    """
    if not rows or any(len(row) != len(titles) for row in rows):
        raise ValueError(f"a grid needs rows of {len(titles)} pictures, one for each title")
    gap, head, foot = 6, 26, 18 if captions else 0
    step_x, step_y = side + gap, side + foot + gap
    page = Image.new("RGB", (gap + step_x * len(titles), head + step_y * len(rows)), PAPER)
    draw = ImageDraw.Draw(page)
    for column, title in enumerate(titles):
        x = gap + column * step_x + side // 2
        draw.text((x, head // 2), title, INK, _fitting_font(title, side, 15), anchor="mm")
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            x, y = gap + j * step_x, head + i * step_y
            if picture is None:
                draw.rectangle((x, y, x + side - 1, y + side - 1), fill=BLANK)
                draw.text((x + side // 2, y + side // 2), "-", MUTED, ImageFont.load_default(20))
            else:
                cell = _stretch(picture, side)
                place = x + (side - cell.width) // 2, y + (side - cell.height) // 2
                page.paste(cell, place)
            if captions and captions[i][j]:
                text = captions[i][j]
                place = x + side // 2, y + side + foot // 2
                draw.text(place, text, INK, _fitting_font(text, side, 12), anchor="mm")
    return np.array(page)


def _stretch(picture: np.ndarray, side: int) -> Image.Image:
    """The picture with its longer side made exactly `side` pixels."""
    picture = images.fit(picture, side)
    scale = side / max(picture.shape[:2])
    size = max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale))
    return Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC)


def _fitting_font(text: str, width: int, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    font = ImageFont.load_default(size)
    while size > 7 and font.getlength(text) > width:
        size -= 1
        font = ImageFont.load_default(size)
    return font


def _check_size(image: np.ndarray, over: np.ndarray) -> None:
    if image.shape[:2] != over.shape:
        raise ValueError(f"an image of {image.shape[:2]} under a map of {over.shape}")
