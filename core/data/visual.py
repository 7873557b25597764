"""Pictures for people: heat maps, coloured label maps, overlays and legends.

Pictures are uint8 RGB arrays (H, W, 3), maps are (H, W); ValueError where the sizes differ.
"""

from collections.abc import Sequence

from core.data.images import IGNORE, VOC_COLOURS

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

PALETTE = VOC_COLOURS.copy()
PALETTE[IGNORE] = (255, 250, 240)  # the palette's own 255 looks like a class; on paper it is blank
INK, MUTED, PAPER = (25, 25, 25), (150, 150, 150), (255, 255, 255)


def heat_map(image: np.ndarray, score: np.ndarray, opacity: float = 0.55) -> np.ndarray:
    """A photograph under a float score in 0..1 of its size: blue is low, red is high."""
    steps = np.rint(255 * np.nan_to_num(np.clip(score, 0, 1))).astype(np.uint8)
    colours = cv2.applyColorMap(steps, cv2.COLORMAP_JET)[..., ::-1]
    return _blend(image, colours, opacity)


def colour_label(label: np.ndarray) -> np.ndarray:
    """A uint8 (H, W) label map in VOC's colours: background black, 255 (ignore) cream."""
    return PALETTE[label]


def overlay(image: np.ndarray, label: np.ndarray, opacity: float = 0.6) -> np.ndarray:
    """A photograph with its uint8 label map over it; the background stays as it is."""
    blended = _blend(image, colour_label(label), opacity)
    return np.where((label == 0)[..., None], image, blended)


def legend(names: Sequence[str], columns: int = 4) -> np.ndarray:
    """The colours of the background and of the classes `names` (label 1, 2, ...)."""
    font = ImageFont.load_default(16)
    entries = ["background", *names]
    columns = min(columns, len(entries))
    lines = -(-len(entries) // columns)
    width = 44 + max(int(font.getlength(name)) for name in entries)
    page = Image.new("RGB", (columns * width + 8, lines * 26 + 8), PAPER)
    draw = ImageDraw.Draw(page)
    for label, name in enumerate(entries):
        x, y = 8 + label // lines * width, 8 + label % lines * 26
        draw.rectangle((x, y, x + 24, y + 17), fill=tuple(PALETTE[label].tolist()), outline=MUTED)
        draw.text((x + 31, y + 9), name, INK, font, anchor="lm")
    return np.array(page)


def _blend(image: np.ndarray, over: np.ndarray, opacity: float) -> np.ndarray:
    if image.shape != over.shape:
        raise ValueError(f"an image of {image.shape[:2]} under a map of {over.shape[:2]}")
    return cv2.addWeighted(image, 1 - opacity, np.ascontiguousarray(over), opacity, 0)
