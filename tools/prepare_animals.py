#!/usr/bin/env python
"""A small data root of VOC's photographs: cat, cow, dog, horse, sheep and person, at 256 pixels.

    python tools/prepare_animals.py --voc VOCdevkit/VOC2012 --out animals

For trials on real images in hours of a CPU or minutes of a GPU (docs/results.md). Its lists:
`train`, the images of VOC's train with one of the five animals, whose masks score; `train_aug`,
those and more of VOC's train_aug with an animal, --images in all, drawn by --seed; `val`, of VOC's
val. Other classes are 255 in the masks and not in the labels. Images are reduced, never enlarged.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `core` from any directory
from core import files
from core.data import images
from core.data.datasets import VOC_CLASSES, DataRoot
from core.errors import InputError
from core.progress import Bar
from core.run import options
from core.run.main import run_main

import numpy as np
from PIL import Image

ANIMALS = ("cat", "cow", "dog", "horse", "sheep")
CLASSES = (*ANIMALS, "person")
RECORD = "animals.json"  # by which this tool knows what it made
NUMBERS = {VOC_CLASSES.index(name) + 1: i for i, name in enumerate(CLASSES, 1)}  # VOC's -> ours


def choose(voc: DataRoot, count: int, seed: int) -> dict[str, dict[str, list[int]]]:
    """List -> id -> classes of VOC, of the images with an animal; `train_aug` holds `train`."""
    animals = {VOC_CLASSES.index(name) + 1 for name in ANIMALS}

    def of(split: str) -> dict[str, list[int]]:
        ids = [i for i in voc.ids(split) if i not in voc.missing_images([i])]
        return {i: some for i, some in voc.image_labels(ids).items() if animals & set(some)}

    train, others = of("train"), of("train_aug")
    more = sorted(others.keys() - train.keys())
    room = max(0, count - len(train))
    drawn = np.random.default_rng(seed).permutation(len(more))[:room]
    chosen = train | {more[i]: others[more[i]] for i in sorted(drawn.tolist())}
    lists = {"train": train, "train_aug": chosen}
    has_val = (voc.root / "ImageSets" / "Segmentation" / "val.txt").exists()
    return lists | ({"val": of("val")} if has_val else {})


def write(voc: DataRoot, lists: dict[str, dict[str, list[int]]], out: Path, side: int) -> None:
    """The data root; images that are there already stay."""
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (out / name).mkdir(parents=True, exist_ok=True)
    lut = np.full(256, images.IGNORE, np.uint8)
    lut[0] = 0
    lut[list(NUMBERS)] = list(NUMBERS.values())
    every = {i: some for ids in lists.values() for i, some in ids.items()}
    scored = {i for name in ("train", "val") for i in lists.get(name, ())}
    for image_id in Bar(every, "prepare_animals", unit="image"):
        mask = voc.mask_path(image_id)
        if image_id in scored and mask.exists():
            label = lut[images.read_label(mask, 21)]
            path = out / "SegmentationClass" / f"{image_id}.png"
            images.write_label(path, images.fit(label, side, nearest=True))
        path = out / "JPEGImages" / f"{image_id}.jpg"
        if not path.exists():
            pixels = images.as_array(images.read_image(voc.image_path(image_id)))
            with files.atomic_path(path) as temporary:
                Image.fromarray(images.fit(pixels, side)).save(temporary, "JPEG", quality=95)
    for name, ids in lists.items():
        files.write_text(out / f"ImageSets/Segmentation/{name}.txt", "\n".join([*ids, ""]))
    rows = (" ".join([i, *(VOC_CLASSES[c - 1] for c in c_s if c in NUMBERS)])
            for i, c_s in every.items())  # fmt: skip
    files.write_text(out / "labels.txt", "\n".join([*rows, ""]))
    files.write_text(out / "classes.txt", "\n".join([*CLASSES, ""]))


def get_args_parser() -> options.Parser:
    p = options.Parser(__doc__)
    p.add_argument("--voc", type=Path, required=True, help="data root of VOC 2012")
    p.add_argument("--out", type=Path, required=True, help="the data root to make")
    words = "images of train_aug, those of train among them"
    p.add_argument("--images", type=options.integer(2, 20_000), default=1200, help=words)
    p.add_argument("--side", type=options.side, default=256, help="longer side, in pixels")
    p.add_argument("--seed", type=options.seed, default=0, help="another seed, other images")
    return p


def main(args: argparse.Namespace) -> None:
    voc = DataRoot(args.voc)
    if voc.classes != VOC_CLASSES:
        raise InputError(f"{args.voc}: has other classes than VOC's 20; give VOC 2012")
    record = args.out / RECORD
    made_of = {"voc": str(args.voc.resolve()), **args.settings}
    if args.out.exists() and any(args.out.iterdir()):
        there = files.read_json(record, "choose another --out") if record.exists() else None
        if there != made_of:  # a data root of somebody's, say VOC itself
            what = "made with other settings" if there else "holds other files than this tool makes"
            raise InputError(f"{args.out}: {what}; choose another --out")
    lists = choose(voc, args.images, args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    files.write_json(record, made_of)
    write(voc, lists, args.out, args.side)
    for name, ids in lists.items():
        print(f"{name}: {len(ids)} images")
    print(f"{args.out}: ready")


if __name__ == "__main__":
    run_main(lambda: main(get_args_parser().parse_args()), get_args_parser)
