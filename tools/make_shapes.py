#!/usr/bin/env python
"""Write a synthetic data set that a ResNet-18 learns from scratch within minutes on a CPU.

    python tools/make_shapes.py --out data/shapes

Five classes of two-part objects: a large body, an ellipse with a class-tinted texture whose hue
overlaps its neighbours', and at one end a small head, a white disc with the class's symbol in its
pure colour. The head is the surer sign of the class; four objects of ten lack it, so that the body
is evidence as well. 1-3 objects an image at random pose, over textured noise with coloured
distractors. Under a minute for the default 900 images on one core.
With --no-background every pixel belongs to a class: patches of the bodies' textures fill the image.
The same settings give the same bytes, and an image depends on its split and number alone.
"""

import argparse
import colorsys
import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `core` from any directory
from core.data.images import write_label
from core.errors import InputError
from core.files import check_folder, read_json, replace_folder, write_json, write_text
from core.progress import Bar
from core.run import options
from core.run.main import run_main

import numpy as np
from PIL import Image

CLASSES = ("bar", "chequer", "cross", "ring", "wedge")  # named after the symbol on the head
NO_GROUND = ("background: none",)  # first line of the classes.txt
DESIGN = 5  # raise it when a change to the drawing changes the images
SPLITS = ("train", "val")
HEADLESS = 0.4  # share of objects without a head
HUE_SPREAD = 0.05  # standard deviation of a body's hue; the classes' hues are 0.2 apart
VISIBLE = 0.5  # an object counts as present if this share of its area is seen


class Thing(NamedTuple):
    """One object: class index 1..5, body centre and semi-axes in pixels, angle in radians."""

    label: int
    x: float
    y: float
    major: float
    minor: float
    angle: float
    has_head: bool

    def parts(self, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Coverage in [0, 1] of body and head at pixels of the object's frame, anti-aliased."""
        radius = np.sqrt((u / self.major) ** 2 + (v / self.minor) ** 2)
        body = np.clip(0.5 + (1 - radius) * self.minor, 0, 1)
        head = np.clip(0.5 + 0.5 * self.minor - np.hypot(u - self.major, v), 0, 1)
        return body, head * self.has_head


def frame(size: int, x: float, y: float, angle: float, margin: int = 0) -> np.ndarray:
    """Pixels (2, H, W), and `margin` more, seen from (x, y): first along the angle, then across."""
    rows, columns = np.mgrid[-margin : size + margin, -margin : size + margin]
    dx, dy, cos, sin = columns - x, rows - y, np.cos(angle), np.sin(angle)
    return np.stack([cos * dx + sin * dy, cos * dy - sin * dx])


def smooth_noise(rng: np.random.Generator, size: int, cell: float, channels: int) -> np.ndarray:
    """Noise (size, size, channels) of about unit variance whose grain is `cell` pixels wide."""
    side = max(2, round(size / cell))
    grids = rng.standard_normal((channels, side, side)).astype(np.float32)
    resized = [Image.fromarray(g).resize((size, size), Image.Resampling.BICUBIC) for g in grids]
    return np.stack(resized, axis=-1)


def colour(hue: float, saturation: float, value: float) -> np.ndarray:
    """RGB in 0..255, float (3,). The hue is in turns."""
    return 255 * np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value), dtype=np.float32)


def background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Textured noise with coloured bars and triangles of any hue: float RGB (size, size, 3)."""
    image = np.full((size, size, 3), colour(rng.uniform(), 0.15, rng.uniform(0.35, 0.65)))
    image += 14 * smooth_noise(rng, size, size / 3, 3)
    image += 9 * smooth_noise(rng, size, size / 12, 1) + 4 * smooth_noise(rng, size, size / 12, 3)
    for _ in range(rng.integers(4, 9)):
        u, v = frame(size, *rng.uniform(0, size, 2), rng.uniform(0, 2 * np.pi))
        long = rng.uniform(0.04, 0.12) * size
        short = long * rng.uniform(0.3, 0.8)
        taper = rng.choice([0.0, 0.5])  # 0: a bar, 0.5: a triangle
        inside = np.minimum(long - np.abs(u), short * (1 - taper * (1 + u / long)) - np.abs(v))
        cover = np.clip(0.5 + inside, 0, 1)[..., None]
        tint = colour(rng.uniform(), rng.uniform(0.3, 0.6), rng.uniform(0.4, 0.8))
        image += cover * (tint + 6 * smooth_noise(rng, size, size / 16, 1) - image)
    return image


def symbol(label: int, p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Where the symbol of class `label` lies; p, q are head coordinates, radius 1."""
    r = np.hypot(p, q)
    return {
        "bar": (np.abs(q) < 0.24) & (r < 0.85),
        "chequer": (p * q > 0) & (r < 0.85),
        "cross": (np.minimum(np.abs(p), np.abs(q)) < 0.16) & (r < 0.85),
        "ring": (r > 0.4) & (r < 0.72),
        "wedge": (p > -0.5) & (np.abs(q) < 0.45 * (0.8 - p)),
    }[CLASSES[label - 1]]


def body_colours(rng: np.random.Generator, label: int, size: int) -> np.ndarray:
    """What the bodies of a class are painted with: float RGB (size, size, 3)."""
    hue = (label - 1) / len(CLASSES) + rng.normal(0, HUE_SPREAD)
    tint = colour(hue, rng.uniform(0.45, 0.7), rng.uniform(0.5, 0.85))
    texture = 7 * smooth_noise(rng, size, size / 20, 1) + 3 * smooth_noise(rng, size, size / 20, 3)
    return tint + texture


def paint(rng: np.random.Generator, image: np.ndarray, thing: Thing) -> None:
    """Draw `thing` on the float RGB `image` (size, size, 3) in place."""
    size = len(image)
    u, v = frame(size, thing.x, thing.y, thing.angle)
    body, head = thing.parts(u, v)
    image += body[..., None] * (body_colours(rng, thing.label, size) - image)
    on = symbol(thing.label, (u - thing.major) / (0.5 * thing.minor), v / (0.5 * thing.minor))
    disc = np.where(on[..., None], colour((thing.label - 1) / len(CLASSES), 1.0, 0.7), 235.0)
    image += head[..., None] * (disc - image)


def place(rng: np.random.Generator, size: int, classes: int = len(CLASSES)) -> Thing:
    """A random object of the first `classes` classes for an image of `size` x `size` pixels."""
    major = rng.uniform(0.24, 0.38) * size
    label = int(rng.integers(1, classes + 1))
    x, y = rng.uniform(0.12, 0.88, 2) * size
    minor, angle = major * rng.uniform(0.5, 0.75), rng.uniform(0, 2 * np.pi)
    return Thing(label, x, y, major, minor, angle, rng.uniform() >= HEADLESS)


def label_map(things: list[Thing], size: int) -> np.ndarray:
    """Label map uint8 (size, size) of `things` drawn in order; 255 where one is hardly seen."""
    owner = np.zeros((size, size), dtype=np.int64)
    values, areas = np.zeros(len(things) + 1, np.uint8), np.ones(len(things) + 1)
    margin = size // 2  # no object reaches further out
    for number, thing in enumerate(things, start=1):
        u, v = frame(size, thing.x, thing.y, thing.angle, margin)
        whole = np.maximum(*thing.parts(u, v)) >= 0.5
        values[number], areas[number] = thing.label, whole.sum()
        owner[whole[margin:-margin, margin:-margin]] = number
    seen = np.bincount(owner.ravel(), minlength=len(areas)) / areas
    values[1:][seen[1:] < VISIBLE] = 255
    return values[owner]


def present(label: np.ndarray) -> list[int]:
    """Class indices 1..5 in a label map, ascending."""
    return [int(c) for c in np.unique(label) if 0 < c < 255]


def draw(
    size: int, seed: int, split: int, number: int, classes: int = len(CLASSES), empty: float = 0
) -> tuple[np.ndarray, np.ndarray]:
    """One image, uint8 RGB (size, size, 3), and its label map, uint8 (size, size).

    Of the first `classes` classes; a share `empty` of the images is without any object.
    """
    rng = np.random.default_rng((seed, split, number))
    label, things = np.zeros((size, size), dtype=np.uint8), []
    some = empty <= np.random.default_rng((seed, split, number, 1)).uniform()
    while some and not present(label):
        things = [place(rng, size, classes) for _ in range(rng.integers(1, 4))]
        label = label_map(things, size)
    image = background(rng, size)
    for thing in things:
        paint(rng, image, thing)
    image += rng.normal(0, 1.5, image.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), label


def draw_patches(
    size: int, seed: int, split: int, number: int, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """As `draw`, without a background: patches of one to three classes share the image."""
    rng = np.random.default_rng((seed, split, number, 2))
    some = 1 + rng.permutation(classes)[: rng.integers(1, 4)]
    centres, owners = rng.uniform(0, size, (9, 2, 1, 1)), rng.choice(some, 9)
    places = np.mgrid[:size, :size] + 0.04 * size * smooth_noise(rng, size, size / 8, 2).T
    label = owners[np.square(places - centres).sum(1).argmin(0)].astype(np.uint8)
    image = rng.normal(0, 1.5, (size, size, 3))
    for each in present(label):
        image += (label == each)[..., None] * body_colours(rng, each, size)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), label


def write_data_set(root: Path, settings: dict[str, Any]) -> None:
    """Write the images, label maps, lists and settings of every split below `root`."""
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    lists = {split: [f"{split}_{i:05d}" for i in range(settings[split])] for split in SPLITS}
    rows = []
    for name in Bar([*lists["train"], *lists["val"]], desc="shapes", unit="image"):
        split, number = name.split("_")
        where = settings["size"], settings["seed"], SPLITS.index(split), int(number)
        if settings["background"]:
            image, label = draw(*where, settings["classes"], settings["negatives"])
        else:
            image, label = draw_patches(*where, settings["classes"])
        # High quality and full-resolution colour keep the objects' borders sharp for the CRF.
        Image.fromarray(image).save(root / f"JPEGImages/{name}.jpg", quality=95, subsampling=0)
        write_label(root / f"SegmentationClass/{name}.png", label)
        rows.append(" ".join([name, *(CLASSES[c - 1] for c in present(label))]))
    lists["train_aug"] = lists["train"]  # every image has its mask: there is nothing to add
    texts = {f"ImageSets/Segmentation/{split}": names for split, names in lists.items()}
    names = CLASSES[: settings["classes"]]
    texts |= {"labels": rows, "classes": names if settings["background"] else NO_GROUND + names}
    for name, lines in texts.items():
        write_text(root / f"{name}.txt", "\n".join([*lines, ""]))
    write_json(root / "shapes.json", settings)


def made_before(out: Path, settings: dict[str, int], overwrite: bool) -> bool:
    """Whether `out` holds this very data set; raises `InputError` if it holds anything else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    record = out / "shapes.json"
    if not record.is_file():
        # Not even with --overwrite: what lies there is not this tool's to delete.
        raise InputError(f"{out} holds other files than a shapes data set; choose another --out")
    found = read_json(record, "choose another --out or delete the directory")
    before = {"classes": len(CLASSES), "negatives": 0.0, "background": True}  # these were options
    found = before | found
    differ = (key for key in settings if found.get(key) != settings[key])
    changes = [f"{key} {found.get(key)} instead of {settings[key]}" for key in differ]
    if changes and not overwrite:
        raise InputError(f"{out} was made with {', '.join(changes)}; --overwrite starts again")
    return not overwrite


def get_args_parser() -> argparse.ArgumentParser:
    p = options.Parser(__doc__)
    p.add_argument("--out", type=Path, required=True, help="directory of the data set")
    p.add_argument("--train", type=options.integer(1, 10**6), default=800, help="training images")
    p.add_argument("--val", type=options.integer(1, 10**6), default=100, help="validation images")
    size = options.integer(64, 4096)  # in a smaller image no symbol is legible
    p.add_argument("--size", type=size, default=192, help="side of the images in pixels")
    p.add_argument("--seed", type=options.seed, default=0, help="another seed, other images")
    some, words = options.integer(1, len(CLASSES)), "the first of the classes alone"
    p.add_argument("--classes", type=some, default=len(CLASSES), help=words)
    words = "share of the images without any object"
    p.add_argument("--negatives", type=options.number(0, 0.9), default=0.0, help=words)
    words = "patches of the classes fill the images"
    p.add_argument("--no-background", dest="background", action="store_false", help=words)
    replace = "start again: replace the data set this tool made in --out, the whole directory"
    p.add_argument("--overwrite", action="store_true", help=replace)
    return p


def main(args: argparse.Namespace) -> None:
    names = ("train", "val", "size", "seed", "classes", "negatives", "background")
    settings = {name: getattr(args, name) for name in names}
    settings["design"], out = DESIGN, args.out.resolve()
    partial, old = (out.parent / f".{out.name}.shapes-{word}" for word in ("partial", "old"))
    if old.exists() and not out.exists():  # stopped between the two renames at the end
        old.rename(out)
    if made_before(out, settings, args.overwrite):
        print(f"{args.out}: already made with these settings")
        return
    check_folder(out)
    # Made beside `out` and renamed at the end: what stands there is always whole.
    shutil.rmtree(partial, ignore_errors=True)
    write_data_set(partial, settings)
    replace_folder(partial, out, old)
    print(f"{args.out}: {args.train} train and {args.val} val images of {args.size} px")


if __name__ == "__main__":
    run_main(lambda: main(get_args_parser().parse_args()))
