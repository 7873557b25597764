"""COCO's annotation files: what they say of each image, the masks they draw, masks of others."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from core import files
from core.data import images
from core.data.datasets import NO_CLASS, NO_GROUND, check_name
from core.errors import InputError
from tools.own import regions

import numpy as np

RULE = "smallest object on top, by the annotations' area; crowds as their class; no pixel ignored"
REMEDY = "give COCO's instances_*.json"
MAX_BYTES = 4 << 30  # instances_train2014.json has 0.33 GB


class Picture(NamedTuple):
    """An image; size: (H, W); objects: class 1..C, area and segmentation of each."""

    file: str
    size: tuple[int, int]
    objects: list[tuple[int, float, Any]]

    @property
    def classes(self) -> set[int]:
        return {number for number, _, _ in self.objects}


class Annotations(NamedTuple):
    """One of COCO's files; categories: id -> name, in the order of the ids."""

    categories: dict[int, str]
    pictures: dict[str, Picture]


def read_annotations(path: Path, segmentations: bool) -> Annotations:
    """Read an instances_*.json, leaving segmentations out (None) where they are not asked for.

    Raises InputError for anything that is not COCO's form.
    """
    value = files.read_json(path, REMEDY, MAX_BYTES)

    def entries(key: str, **kinds: type | tuple[type, ...]) -> Iterable[dict[str, Any]]:
        """The dicts of a list, after a look at the types of the fields that are used."""
        found = value.get(key)
        if not isinstance(found, list):
            raise InputError(f"{path}: no list of {key!r}; {REMEDY}")
        for place, entry in enumerate(found):
            for name, kind in kinds.items():
                field = entry.get(name) if isinstance(entry, dict) else None
                if not isinstance(field, kind) or isinstance(field, bool):
                    what = f"number {place} of {key!r} has no sound {name!r}"
                    raise InputError(f"{path}: {what}; {REMEDY}")
            yield entry

    categories: dict[int, str] = {}
    for entry in entries("categories", id=int, name=str):
        if "keypoints" in entry:
            raise InputError(f"{path}: keypoints of one class; {REMEDY}, of all classes")
        name = entry["name"].strip()  # as lines of classes.txt are
        if entry["id"] in categories or name in categories.values():
            raise InputError(f"{path}: category {name!r} or its id is there twice")
        if NO_CLASS.fullmatch(name) or NO_GROUND.fullmatch(name):
            what = "0 is always the background and 255 ignored"
            raise InputError(f"{path}: leave category {name!r} out; of the labels {what}")
        categories[entry["id"]] = check_name(name, path, "class")
    if not 1 <= len(categories) <= 254:
        raise InputError(f"{path}: {len(categories)} categories, not 1 to 254; {REMEDY}")
    categories = dict(sorted(categories.items()))
    number = {category: i for i, category in enumerate(categories, 1)}
    by_id: dict[int, Picture] = {}
    for entry in entries("images", id=int, file_name=str, height=int, width=int):
        size = (entry["height"], entry["width"])
        if min(size) < 1 or size[0] * size[1] > images.MAX_PIXELS:
            raise InputError(f"{path}: image {entry['id']} of {size[0]}x{size[1]} pixels")
        name = check_name(entry["file_name"], path, "image")
        if entry["id"] in by_id or len(name.split()) > 1:  # labels.txt is split at spaces
            raise InputError(f"{path}: image {name!r} has an id used twice, or a space; rename it")
        if Path(name).suffix.lower() not in images.ENDINGS:
            what = f"image {name!r} ends in none of {', '.join(images.ENDINGS)}"
            raise InputError(f"{path}: {what}; rename it, here too")
        by_id[entry["id"]] = Picture(name, size, [])
    real = (int, float)
    fields = {"image_id": int, "category_id": int, "area": real, "segmentation": (list, dict)}
    for entry in entries("annotations", **fields):
        if entry["image_id"] not in by_id or entry["category_id"] not in number:
            what = f"image {entry['image_id']} or category {entry['category_id']}"
            raise InputError(f"{path}: an annotation of {what}, which it does not list; {REMEDY}")
        area, shape = entry["area"], entry["segmentation"] if segmentations else None
        by_id[entry["image_id"]].objects.append((number[entry["category_id"]], area, shape))
    pictures = {Path(p.file).stem: p for p in by_id.values()}
    if len(pictures) < len(by_id):
        raise InputError(f"{path}: two images have one file name; {REMEDY}")
    return Annotations(categories, dict(sorted(pictures.items())))


def coder() -> Any:
    """pycocotools' module of masks; InputError without it."""
    try:
        from pycocotools import mask
    except Exception:  # missing, or built for another NumPy: errors of any kind
        remedy = "`pip install pycocotools`, or give --masks a published archive's folder"
        what = "drawing masks needs pycocotools, which does not import"
        raise InputError(f"{what}; {remedy}") from None
    return mask


def decode(shape: Any, size: tuple[int, int], where: str) -> np.ndarray:
    """A segmentation, polygons or RLE, as bool (H, W); of parts below three points nothing."""
    mask, is_list = coder(), isinstance(shape, list)
    try:
        outlines = [_outline(part, size) for part in shape if len(part) >= 6] if is_list else []
        if is_list and not outlines:
            return np.zeros(size, bool)
        runs = mask.frPyObjects(outlines, *size) if is_list else [_runs(mask, shape, size)]
        return mask.decode(mask.merge(runs)).astype(bool)
    except Exception:  # pycocotools raises plain ones
        words = f"is no polygon or RLE of {size[0]}x{size[1]} pixels; download the file again"
        raise InputError(f"{where}: a segmentation {words}") from None


def _outline(part: Any, size: tuple[int, int]) -> list[float]:
    """A polygon x, y, x, y, ... that lies near the image: its outline is walked in pixels."""
    xy = np.asarray(part, np.float64)
    if xy.ndim != 1 or len(xy) % 2 or not (np.abs(xy) <= 4 * max(size)).all():
        raise ValueError("no outline")
    return xy.tolist()


def _runs(mask: Any, shape: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """An RLE in pycocotools' form: runs of 0 and 1 in turn, columns first."""
    if list(shape["size"]) != list(size):
        raise ValueError("another size")
    counts = shape["counts"]
    runs = np.asarray(counts if isinstance(counts, list) else regions.unpack_coco(counts), np.int64)
    if runs.min(initial=0) < 0 or runs.sum() != size[0] * size[1]:
        raise ValueError("other runs than pixels")
    return mask.frPyObjects({"size": list(size), "counts": runs.tolist()}, *size)


def draw(picture: Picture, where: str) -> np.ndarray:
    """The mask of a picture, uint8 (H, W), by `RULE`; of equal areas the first is on top."""
    label = np.zeros(picture.size, np.uint8)
    for number, _, shape in reversed(sorted(picture.objects, key=lambda each: each[1])):
        label[decode(shape, picture.size, where)] = number
    return label


def digest(label: np.ndarray) -> str:
    """A digest of a mask's pixels: the same whichever program wrote the PNG."""
    return hashlib.sha256(f"{label.shape}".encode() + label.tobytes()).hexdigest()[:16]


def find_masks(folder: Path, pictures: dict[str, Picture]) -> dict[str, Path]:
    """The published masks of the pictures, called as these or by COCO's number alone.

    Pictures without objects need none. Raises InputError where one is missing.
    """
    names = {path.stem: path for path in sorted(folder.rglob("*.png"))}
    found = {}
    for image_id, picture in pictures.items():
        path = names.get(image_id, names.get(image_id.rsplit("_", 1)[-1]))
        if path is not None:
            found[image_id] = path
        elif picture.objects:
            raise InputError(f"{folder / image_id}.png: no such mask in the folder of --masks")
    return found


# Of a published mask: its digest, the first label of another class than the picture's (0: none),
# and whether all labels are category ids of the picture's classes.
Verdict = tuple[str, int, bool]


def look_at_masks(
    category: dict[int, int], chunk: list[tuple[str, Path, Picture]]
) -> dict[str, Verdict]:
    """Compare published masks with the annotations; category: of class 1..C."""
    verdicts = {}
    for image_id, path, picture in chunk:
        label = images.read_label(path, 255, picture.size)
        labels = set(np.unique(label).tolist()) - {0, images.IGNORE}
        other = max(labels - picture.classes, default=0)
        as_ids = labels <= {category[number] for number in picture.classes}
        verdicts[image_id] = digest(label), other, other > 0 and as_ids
    return verdicts


def check_verdicts(
    verdicts: dict[str, Verdict], paths: dict[str, Path], categories: dict[int, str]
) -> None:
    """Refuse masks that number the classes otherwise; say so where single masks hold others."""
    names = list(categories.values())
    odd = {i: other for i, (_, other, _) in verdicts.items() if other}
    as_ids = [i for i, (_, _, is_id) in verdicts.items() if is_id]
    over = [i for i, other in odd.items() if other > len(names)]
    remedy = f"take masks with the labels 0 to {len(names)}, or leave --masks out"
    first = (over or as_ids or list(odd) or [""])[0]
    if (name := categories.get(odd.get(first, 0))) and 2 * len(as_ids) > len(odd):
        what = f"{paths[first]} has {odd[first]}, the id of {name!r}"
        is_class = f"which is class {names.index(name) + 1}"
        raise InputError(f"category ids, not classes: {what}, {is_class}; {remedy}")
    if over or 2 * len(odd) > len(verdicts):
        what = f"label {odd[first]}, a class that the annotations do not have there"
        raise InputError(f"{paths[first]}: {what} ({len(odd)} such masks); {remedy}")
    if odd:
        what = "masks hold classes that the annotations do not have there, the first"
        print(f"note: {len(odd)} {what} {paths[first]} (label {odd[first]})")
