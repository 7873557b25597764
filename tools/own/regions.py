"""Regions of a picture as annotation tools write them: polygons, boxes, ellipses, runs, brushes.

A region is a function that draws itself in a picture of a given size, as drawing costs time and
most uses want the names alone. What is damaged raises ValueError, then.
"""

import base64
import io
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

from core.data.images import MAX_PIXELS

import numpy as np
from PIL import Image, ImageDraw

Point = tuple[float, float]  # x, y
Region = Callable[[tuple[int, int]], np.ndarray]  # (H, W) of the picture -> bool (H, W)


class Shape(NamedTuple):
    """A class in a picture, and where: a region, or None for a label of the whole picture.

    Firm: the object ends where the region does. A box is not; a point or line has no region either.
    """

    name: str
    region: Region | None = None
    firm: bool = True


def points_of(pairs: Iterable[Any]) -> list[Point]:
    """Finite (x, y), none so far out that drawing would overflow."""
    found = np.array([(float(x), float(y)) for x, y in pairs]).reshape(-1, 2)
    if not np.isfinite(found).all():
        raise ValueError("a coordinate that is no number")
    return [(float(x), float(y)) for x, y in found.clip(-1e6, 1e6)]


def fill(rings: list[list[Point]], percent: bool, size: tuple[int, int]) -> np.ndarray:
    """The pixels whose centres the polygons cover; their points in pixels, or percent of it."""
    # PIL paints the outline as well, to the right and below: at twice the size, every second
    # row and column is of the centres.
    image = Image.new("1", (2 * size[1], 2 * size[0]))
    unit = (size[1] / 50, size[0] / 50) if percent else (2, 2)
    for ring in rings:
        ImageDraw.Draw(image).polygon([(x * unit[0], y * unit[1]) for x, y in ring], fill=1)
    return np.array(image)[1::2, 1::2]


def polygon(name: str, rings: list[list[Point]], percent: bool = False) -> Shape:
    if not rings or min(map(len, rings)) < 3:
        return Shape(name, None, False)
    return Shape(name, partial(fill, rings, percent))


def box(name: str, corners: list[Point], percent: bool = False, turned: Any = 0) -> Shape:
    """A box between two corners; of a turned one no area is known."""
    (left, top), (right, bottom) = corners
    ring = [(left, top), (right, top), (right, bottom), (left, bottom)]
    return Shape(name, None if float(turned or 0) else partial(fill, [ring], percent), False)


def ellipse(
    name: str, centre: Point, radii: Point, percent: bool = False, turned: Any = 0
) -> Shape:
    angle, turn = np.linspace(0, 2 * np.pi, 72, endpoint=False), np.radians(float(turned or 0))
    x, y = radii[0] * np.cos(angle), radii[1] * np.sin(angle)
    if turn and percent:  # x and y have different units
        return Shape(name, None, False)
    xs = centre[0] + x * np.cos(turn) - y * np.sin(turn)
    ys = centre[1] + x * np.sin(turn) + y * np.cos(turn)
    return polygon(name, [points_of(zip(xs, ys, strict=True))], percent)


def place(part: np.ndarray, left: int, top: int, size: tuple[int, int]) -> np.ndarray:
    """A bool (h, w) part in the picture; what lies outside is cut off."""
    whole = np.zeros(size, bool)
    rows = slice(max(0, top), max(0, top + len(part)))
    columns = slice(max(0, left), max(0, left + part.shape[1]))
    seen = part[max(0, -top) :, max(0, -left) :]
    inside = whole[rows, columns]
    inside |= seen[: inside.shape[0], : inside.shape[1]]
    return whole


def runs(
    counts: list[int], shape: tuple[int, int], order: Any, corner: tuple[int, int], size: Any
) -> np.ndarray:
    """Runs of pixels outside and inside in turn, in an array of `shape` at `corner` (x, y)."""
    if min(counts) < 0 or sum(counts) != shape[0] * shape[1] or sum(counts) > MAX_PIXELS:
        raise ValueError("runs of another number of pixels")
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return place(flat.reshape(shape, order=order), *corner, size)


def unpack_coco(text: str | bytes) -> list[int]:
    """The runs of COCO's compressed RLE: 5 bits a character, differences to the last but one."""
    counts: list[int] = []
    value = shift = 0
    for code in text.encode() if isinstance(text, str) else text:
        bits = code - 48
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32 and shift < 64:
            continue
        value -= (bits & 16) << (shift - 4)  # the sign
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    return counts


def png(data: str, corner: Point, size: tuple[int, int]) -> np.ndarray:
    """labelme's mask: a PNG of the part of the picture from `corner` on."""
    with Image.open(io.BytesIO(base64.b64decode(data)), formats=("PNG",)) as image:
        if image.width * image.height > MAX_PIXELS:
            raise ValueError("too large a mask")
        return place(np.array(image.convert("L")) > 0, round(corner[0]), round(corner[1]), size)


def unpack(data: list[int], most: int) -> np.ndarray:
    """Numbers that Label Studio (its library rle-pack) wrote as runs of bits; at most `most`."""
    bits, at = "".join(f"{byte:08b}" for byte in bytes(data)), 0

    def take(count: int) -> int:
        nonlocal at
        at += count
        return int(bits[at - count : at], 2)  # ValueError at the end of the bits

    if (total := take(32)) > most:
        raise ValueError("a brush of another number of pixels")
    word, sizes = take(5) + 1, [take(4) + 1 for _ in range(4)]
    values, i = np.zeros(total, np.uint32), 0
    while i < total:
        same = take(1)
        end = min(total, i + 1 + take(sizes[take(2)]))
        values[i:end] = take(word) if same else [take(word) for _ in range(i, end)]
        i = end
    return values


def brush(data: list[int], shape: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Label Studio's brush: RGBA values, of which the alpha counts."""
    if shape != size:
        raise ValueError("a brush for a picture of another size")
    values = unpack(data, 4 * shape[0] * shape[1])
    return values.reshape(*shape, 4)[..., 3] > 0
