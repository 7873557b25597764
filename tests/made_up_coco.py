"""A made-up COCO: 80 classes of 90 ids, overlaps, ties, crowds, lines, pictures without objects."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tools import prepare_coco

import numpy as np
import pytest
from PIL import Image

# COCO's category ids: id 13 is class 12, 28 is class 26, 90 is class 80.
GAPS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
CATEGORIES = {i: f"thing {i}" for i in range(1, 91) if i not in GAPS}
CATEGORIES |= {1: "person", 11: "fire hydrant", 13: "stop sign", 28: "umbrella", 90: "toothbrush"}
N_LABELS = 81
SIZE = (40, 60)  # (H, W)
COUNTS = {"train": 8, "val": 4}
EMPTY = ("train7", "val3")  # images without objects
Objects = dict[str, list[dict[str, Any]]]  # of the images by name, `<split><i>`


def box(x: float, y: float, width: float, height: float) -> list[list[float]]:
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def crowd(inside: np.ndarray) -> dict[str, Any]:
    """Uncompressed RLE of a mask: columns first, runs of 0 and 1 in turn, from 0."""
    flat = np.concatenate([[0], inside.ravel(order="F").astype(int), [2]])
    runs = np.diff([0, *np.flatnonzero(np.diff(flat))])
    return {"size": list(inside.shape), "counts": runs.tolist()}


def objects() -> Objects:
    """The annotations of every image, by the image's name."""
    band = np.zeros(SIZE, bool)
    band[30:36, 5:50] = True
    large = {"category_id": 1, "area": 900, "segmentation": box(5, 5, 30, 30), "iscrowd": 0}
    small = {"category_id": 13, "area": 100, "segmentation": box(15, 15, 10, 10), "iscrowd": 0}
    tie = {"category_id": 28, "area": 100, "segmentation": box(20, 15, 10, 10), "iscrowd": 0}
    many = {"category_id": 90, "area": int(band.sum()), "segmentation": crowd(band), "iscrowd": 1}
    parts = box(40, 2, 8, 8) + box(50, 20, 6.5, 9.25) + [[1.0, 1.0, 2.0, 2.0]]
    split = {"category_id": 11, "area": 120, "segmentation": parts, "iscrowd": 0}
    found = {f"train{i}": [[large, small], [many, large], [split]][i % 3] for i in range(7)}
    found |= {"val0": [small, large, tie], "val1": [many, split, large], "val2": [split, small]}
    return found | {name: [] for name in EMPTY}


def image_id(split: str, number: int) -> str:
    return f"COCO_{split}2014_{number:012d}"


def number_of(split: str, i: int) -> int:
    return (1 if split == "train" else 101) + 3 * i


def write(folder: Path, objects: Objects, size: tuple[int, int] = SIZE) -> None:
    """train2014/, val2014/ and their annotations, listed in no order; in colour but for two."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        (folder / f"{split}2014").mkdir()
        pictures: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for i in reversed(range(sum(name.startswith(split) for name in objects))):
            number = number_of(split, i)
            file = f"{image_id(split, number)}.jpg"
            pixels = rng.integers(0, 255, (*size, 3)).astype(np.uint8)
            picture = Image.fromarray(pixels).convert("L" if i == 1 else "RGB")
            picture.save(folder / f"{split}2014" / file)
            pictures.append({"id": number, "file_name": file, "height": size[0], "width": size[1]})
            for each in objects[f"{split}{i}"]:
                annotations.append({"id": len(annotations), "image_id": number, **each})
        categories = [{"id": i, "name": name} for i, name in reversed(CATEGORIES.items())]
        value = {"images": pictures, "annotations": annotations, "categories": categories}
        (folder / f"instances_{split}2014.json").write_text(json.dumps(value))


def prepare(source: Path, *more: str, out: Path | None = None) -> Path:
    """Run tools/prepare_coco.py; the data root."""
    out = out or source / "coco"
    command = ["prepare_coco.py", "--out", str(out), "--jobs", "1", "--annotations"]
    command += [str(source / f"instances_{split}2014.json") for split in COUNTS]
    command += ["--images", *(str(source / f"{split}2014") for split in COUNTS), *more]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", command)
        prepare_coco.main()
    return out


def expected_mask(api: Any, number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """By pycocotools alone: the smallest object on top, of equal areas the first."""
    category = dict(zip(CATEGORIES, range(1, 81), strict=True))
    mask = np.zeros(size, np.uint8)
    for each in sorted(api.imgToAnns[number], key=lambda a: a["area"]):
        if isinstance(each["segmentation"], list):  # pycocotools refuses lines
            kept = [part for part in each["segmentation"] if len(part) >= 6]
            each = each | {"segmentation": kept}
        inside = (api.annToMask(each) > 0) & (mask == 0)
        mask[inside] = category[each["category_id"]]
    return mask
