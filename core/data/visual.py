"""Pictures for people: heat maps, coloured label maps, overlays and legends.

Pictures are uint8 RGB arrays (H, W, 3), maps are (H, W); ValueError where the sizes differ.
"""

import logging
import sys
from collections.abc import Sequence

from core.data.images import IGNORE, VOC_COLOURS

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

PALETTE = VOC_COLOURS.copy()
PALETTE[IGNORE] = (255, 250, 240)  # the palette's own 255 looks like a class; on paper it is blank
INK, MUTED, PAPER = (25, 25, 25), (150, 150, 150), (255, 255, 255)

# Each letter is of the first of these that is installed and has it; of a legend, each name.
FONTS = (
    "DejaVu Sans",
    *(f"Noto Sans CJK {place}" for place in ("SC", "TC", "JP", "KR", "HK")),
    *(f"Noto Sans {script}" for script in ("SC", "JP", "KR", "Devanagari", "Bengali", "Thai")),
    *("Source Han Sans SC", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Droid Sans Fallback"),
    *("Microsoft YaHei", "SimHei", "PingFang SC", "Arial Unicode MS"),
)
NO_FONT = (
    "note: no font here has all letters of the names; "
    "install one, for Chinese, Japanese and Korean fonts-noto-cjk"
)


def heat_map(image: np.ndarray, score: np.ndarray) -> np.ndarray:
    """A photograph under a float score in 0..1 of its size: blue is low, red is high."""
    steps = np.rint(255 * np.nan_to_num(np.clip(score, 0, 1))).astype(np.uint8)
    colours = cv2.applyColorMap(steps, cv2.COLORMAP_JET)[..., ::-1]
    return _blend(image, colours, 0.55)


def colour_label(label: np.ndarray) -> np.ndarray:
    """A uint8 (H, W) label map in VOC's colours: background black, 255 (ignore) cream."""
    return PALETTE[label]


def overlay(image: np.ndarray, label: np.ndarray, opacity: float = 0.6) -> np.ndarray:
    """A photograph with its uint8 label map over it; the background stays as it is."""
    blended = _blend(image, colour_label(label), opacity)
    return np.where((label == 0)[..., None], image, blended)


def legend(names: Sequence[str], columns: int = 4) -> np.ndarray:
    """The colours of the background and of the classes `names` (label 1, 2, ...)."""
    entries = ["background", *names]
    fonts, missing = zip(*map(_font, entries), strict=True)
    if any(missing):
        print(NO_FONT, file=sys.stderr)
    columns = min(columns, len(entries))
    lines = -(-len(entries) // columns)
    width = 44 + max(int(font.getlength(name)) for font, name in zip(fonts, entries, strict=True))
    page = Image.new("RGB", (columns * width + 8, lines * 26 + 8), PAPER)
    draw = ImageDraw.Draw(page)
    for label, name in enumerate(entries):
        x, y = 8 + label // lines * width, 8 + label % lines * 26
        draw.rectangle((x, y, x + 24, y + 17), fill=tuple(PALETTE[label].tolist()), outline=MUTED)
        draw.text((x + 31, y + 9), name, INK, fonts[label], anchor="lm")
    return np.array(page)


def installed_fonts() -> list[str]:
    """Those of `FONTS` that are here."""
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # not of missing weights
    from matplotlib import font_manager  # takes a second

    installed = {font.name for font in font_manager.fontManager.ttflist}
    return [name for name in FONTS if name in installed]


def _font(name: str) -> tuple[ImageFont.FreeTypeFont | ImageFont.ImageFont, int]:
    """PIL's font for ASCII, else that of `FONTS` with most letters; how many letters it lacks."""
    if name.isascii():
        return ImageFont.load_default(16), 0
    from matplotlib.font_manager import FontProperties, findfont, get_font

    faces = [get_font(findfont(FontProperties(family=[each]))) for each in installed_fonts()]
    lacks = [sum(not face.get_char_index(ord(c)) for c in name) for face in faces]
    face = faces[lacks.index(min(lacks))]
    font = ImageFont.truetype(face.fname, 16, getattr(face, "face_index", 0))
    return font, min(lacks)


def _blend(image: np.ndarray, over: np.ndarray, opacity: float) -> np.ndarray:
    if image.shape != over.shape:
        raise ValueError(f"an image of {image.shape[:2]} under a map of {over.shape[:2]}")
    return cv2.addWeighted(image, 1 - opacity, np.ascontiguousarray(over), opacity, 0)
