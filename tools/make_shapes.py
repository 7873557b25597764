"""Write a synthetic data set that a ResNet-18 learns from scratch within minutes on a CPU.

    python tools/make_shapes.py --out data/shapes

Five classes of two-part objects: a large body, an ellipse with a class-tinted texture whose hue
overlaps its neighbours', and at one end a small head, a white disc with the class's symbol in its
pure colour. The head is the surer sign of the class; four objects of ten lack it, so that the body
is evidence as well. 1-3 objects an image at random pose, over textured noise with coloured
distractors. Under a minute for the default 900 images on one core.
The same settings give the same bytes, and an image depends on its split and number alone.
"""

from __future__ import annotations

import argparse
import colorsys
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `core` from any directory
from core.data.images import write_label
from core.errors import InputError
from core.files import read_json, write_json, write_text
from core.run import options
from core.run.main import run_main

CLASSES = ("bar", "chequer", "cross", "ring", "wedge")  # named after the symbol on the head
DESIGN = 5  # raise it when a change to the drawing changes the images
SPLITS = ("train", "val")
MIN_SIZE = 64  # smaller, and the symbols are no longer legible
HEADLESS = 0.4  # share of objects without a head
HUE_SPREAD = 0.05  # standard deviation of a body's hue; the classes' hues are 0.2 apart
VISIBLE = 0.5  # an object counts as present if this share of its area is seen


@dataclass(frozen=True)
class Thing:
    """One object: class index 1..5, body centre and semi-axes in pixels, angle in radians."""

    label: int
    x: float
    y: float
    major: float
    minor: float
    angle: float
    has_head: bool

    @property
    def head_radius(self) -> float:
        return 0.5 * self.minor

    def local(self, size: int, margin: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Pixel grid in the object's frame (u along the body), reaching `margin` past the image."""
        y, x = np.mgrid[-margin : size + margin, -margin : size + margin]
        dx, dy = x - self.x, y - self.y
        cos, sin = np.cos(self.angle), np.sin(self.angle)
        return cos * dx + sin * dy, cos * dy - sin * dx

    def parts(self, u: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Coverage in [0, 1] of body and head, one pixel of anti-aliasing at the border."""
        radius = np.sqrt((u / self.major) ** 2 + (v / self.minor) ** 2)
        body = np.clip(0.5 + (1 - radius) * self.minor, 0, 1)
        head = np.clip(0.5 + self.head_radius - np.hypot(u - self.major, v), 0, 1)
        return body, head * self.has_head


def smooth_noise(rng: np.random.Generator, size: int, cell: float, channels: int) -> np.ndarray:
    """Noise (size, size, channels) of about unit variance whose grain is `cell` pixels wide."""
    side = max(2, round(size / cell))
    grids = rng.standard_normal((channels, side, side)).astype(np.float32)
    resized = [Image.fromarray(g).resize((size, size), Image.Resampling.BICUBIC) for g in grids]
    return np.stack([np.asarray(r) for r in resized], axis=-1)


def colour(hue: float, saturation: float, value: float) -> np.ndarray:
    """RGB in 0..255, float (3,). The hue is in turns."""
    return 255 * np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value), dtype=np.float32)


def background(rng: np.random.Generator, size: int) -> np.ndarray:
    """Textured noise with coloured bars and triangles of any hue: float RGB (size, size, 3)."""
    image = np.full((size, size, 3), colour(rng.uniform(), 0.15, rng.uniform(0.35, 0.65)))
    image += 14 * smooth_noise(rng, size, size / 3, 3)
    image += 9 * smooth_noise(rng, size, size / 12, 1) + 4 * smooth_noise(rng, size, size / 12, 3)
    y, x = np.mgrid[:size, :size]
    for _ in range(rng.integers(4, 9)):
        dx, dy = x - rng.uniform(0, size), y - rng.uniform(0, size)
        angle, long = rng.uniform(0, 2 * np.pi), rng.uniform(0.04, 0.12) * size
        u = np.cos(angle) * dx + np.sin(angle) * dy
        v = np.cos(angle) * dy - np.sin(angle) * dx
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


def paint(rng: np.random.Generator, image: np.ndarray, thing: Thing) -> None:
    """Draw `thing` on the float RGB `image` (size, size, 3) in place."""
    size = len(image)
    u, v = thing.local(size)
    body, head = thing.parts(u, v)
    hue = (thing.label - 1) / len(CLASSES)
    tint = colour(hue + rng.normal(0, HUE_SPREAD), rng.uniform(0.45, 0.7), rng.uniform(0.5, 0.85))
    texture = 7 * smooth_noise(rng, size, size / 20, 1) + 3 * smooth_noise(rng, size, size / 20, 3)
    image += body[..., None] * (tint + texture - image)
    if thing.has_head:
        p, q = (u - thing.major) / thing.head_radius, v / thing.head_radius
        disc = np.where(symbol(thing.label, p, q)[..., None], colour(hue, 1.0, 0.7), 235.0)
        image += head[..., None] * (disc - image)


def place(rng: np.random.Generator, size: int) -> Thing:
    """A random object for an image of `size` x `size` pixels."""
    major = rng.uniform(0.24, 0.38) * size
    return Thing(
        label=int(rng.integers(1, len(CLASSES) + 1)),
        x=rng.uniform(0.12, 0.88) * size,
        y=rng.uniform(0.12, 0.88) * size,
        major=major,
        minor=major * rng.uniform(0.5, 0.75),
        angle=rng.uniform(0, 2 * np.pi),
        has_head=bool(rng.uniform() >= HEADLESS),
    )


def label_map(things: list[Thing], size: int) -> np.ndarray:
    """Label map uint8 (size, size) of `things` drawn in order; 255 where one is hardly seen."""
    owner = np.zeros((size, size), dtype=np.int64)
    area = np.ones(len(things) + 1)
    margin = size // 2  # no object reaches further out
    for number, thing in enumerate(things, start=1):
        whole = np.maximum(*thing.parts(*thing.local(size, margin))) >= 0.5
        area[number] = whole.sum()
        owner[whole[margin:-margin, margin:-margin]] = number
    seen = np.bincount(owner.ravel(), minlength=len(area)) / area
    values = [0] + [t.label if s >= VISIBLE else 255 for t, s in zip(things, seen[1:], strict=True)]
    return np.array(values, dtype=np.uint8)[owner]


def present(label: np.ndarray) -> list[int]:
    """Class indices 1..5 in a label map, ascending."""
    return [int(c) for c in np.unique(label) if 0 < c < 255]


def draw(size: int, seed: int, split: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """One image, uint8 RGB (size, size, 3), and its label map, uint8 (size, size)."""
    rng = np.random.default_rng((seed, split, number))
    label = np.zeros((size, size), dtype=np.uint8)
    while not present(label):
        things = [place(rng, size) for _ in range(rng.integers(1, 4))]
        label = label_map(things, size)
    image = background(rng, size)
    for thing in things:
        paint(rng, image, thing)
    image += rng.normal(0, 1.5, image.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8), label


def write_data_set(root: Path, counts: dict[str, int], size: int, seed: int) -> None:
    """Write the images, label maps and lists of every split below `root`."""
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    lists = {split: [f"{split}_{i:05d}" for i in range(n)] for split, n in counts.items()}
    jobs = [(split, number) for split, count in counts.items() for number in range(count)]
    rows = []
    for split, number in tqdm(jobs, desc="shapes", unit="image"):
        name = lists[split][number]
        image, label = draw(size, seed, SPLITS.index(split), number)
        # High quality and full-resolution colour keep the objects' borders sharp for the CRF.
        Image.fromarray(image).save(root / f"JPEGImages/{name}.jpg", quality=95, subsampling=0)
        write_label(root / f"SegmentationClass/{name}.png", label)
        rows.append(" ".join([name, *(CLASSES[c - 1] for c in present(label))]))
    lists["train_aug"] = lists["train"]  # every image has its mask: there is nothing to add
    for split, names in lists.items():
        write_text(root / f"ImageSets/Segmentation/{split}.txt", "\n".join([*names, ""]))
    write_text(root / "labels.txt", "\n".join([*rows, ""]))
    write_text(root / "classes.txt", "\n".join([*CLASSES, ""]))


def made_before(out: Path, settings: dict[str, int], overwrite: bool) -> bool:
    """Whether `out` holds this very data set; raises `InputError` if it holds anything else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    record = out / "shapes.json"
    if not record.is_file():
        # Not even with --overwrite: what lies there is not this tool's to delete.
        raise InputError(f"{out} holds other files than a shapes data set; choose another --out")
    found = read_json(record, "choose another --out or delete the directory")
    changed = [key for key in settings if found.get(key) != settings[key]]
    if changed and not overwrite:
        changes = [f"{key} {found.get(key)} instead of {settings[key]}" for key in changed]
        raise InputError(f"{out} was made with {', '.join(changes)}; --overwrite starts again")
    return not overwrite


def get_args_parser() -> argparse.ArgumentParser:
    parser = options.Parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="directory of the data set")
    parser.add_argument("--train", type=int, default=800, help="training images")
    parser.add_argument("--val", type=int, default=100, help="validation images")
    parser.add_argument("--size", type=int, default=192, help="side of the images in pixels")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other images")
    replace = "start again: replace the data set this tool made in --out, the whole directory"
    parser.add_argument("--overwrite", action="store_true", help=replace)
    return parser


def main(args: argparse.Namespace) -> None:
    for option, least in (("train", 1), ("val", 1), ("size", MIN_SIZE), ("seed", 0)):
        if getattr(args, option) < least:
            raise InputError(f"--{option} {getattr(args, option)}: at least {least} is needed")
    counts = {"train": args.train, "val": args.val}
    settings = {**counts, "size": args.size, "seed": args.seed, "design": DESIGN}
    out = args.out.resolve()
    if made_before(out, settings, args.overwrite):
        print(f"{args.out}: already made with these settings")
        return
    # Made beside `out` and renamed at the end: what stands there is always whole.
    partial = out.with_name(f".{out.name}.shapes-partial")
    shutil.rmtree(partial, ignore_errors=True)
    write_data_set(partial, counts, args.size, args.seed)
    write_json(partial / "shapes.json", settings)
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)
    print(f"{args.out}: {args.train} train and {args.val} val images of {args.size} px")


if __name__ == "__main__":
    run_main(lambda: main(get_args_parser().parse_args()))
