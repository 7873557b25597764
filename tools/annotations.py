"""Label maps in the forms of annotation tools: COCO JSON, labelme, CVAT, Label Studio.

A writer is made with the class names and the command line's `form`, `tolerance`, `prefix` and
`labels`; `add` takes one picture after the other, `text` is the file. labelme has a file for each.
"""

import json
import os
import urllib.parse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from core.errors import InputError
from tools.polygons import polygons, run_lengths

import numpy as np


class Picture(NamedTuple):
    """A label map: its id, its picture's path, if it is known, and the labels (H, W)."""

    id: str
    path: Path | None
    label: np.ndarray

    @property
    def file(self) -> str:
        return self.path.name if self.path else f"{self.id}.jpg"

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.label.shape[0], self.label.shape[1]

    def present(self) -> list[int]:
        """The classes in it, that with the largest area first: what is on top comes last."""
        values, counts = np.unique(self.label, return_counts=True)
        return [int(v) for _, v in sorted(zip(-counts, values, strict=True)) if 0 < v < 255]

    def shapes(self, classes: Sequence[str], tolerance: float) -> list[tuple[str, np.ndarray]]:
        """(class, polygon) of every part."""
        rings = ((c, polygons(self.label == c, tolerance)) for c in self.present())
        return [(classes[c - 1], ring) for c, some in rings for ring in some]


def coco_annotations(picture: Picture, tolerance: float, as_rle: bool) -> list[dict[str, Any]]:
    """An annotation for each class, without ids."""
    found = []
    for c in picture.present():
        mask = picture.label == c
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        low, high = (int(columns[0]), int(rows[0])), (int(columns[-1]) + 1, int(rows[-1]) + 1)
        shape: Any = {"size": list(picture.size), "counts": run_lengths(mask)} if as_rle else None
        if shape is None:
            shape = [ring.ravel().tolist() for ring in polygons(mask, tolerance)]
        box = [*low, high[0] - low[0], high[1] - low[1]]
        entry = {"category_id": c, "segmentation": shape, "area": int(mask.sum()), "bbox": box}
        found.append(entry | {"iscrowd": 0})
    return found


def labelme(picture: Picture, classes: Sequence[str], tolerance: float, out: Path) -> str:
    """The text of labelme's file for a picture."""
    shapes = [
        {"label": name, "points": ring.tolist(), "shape_type": "polygon"}
        | {"group_id": None, "flags": {}}
        for name, ring in picture.shapes(classes, tolerance)
    ]
    path = picture.file
    if picture.path is not None:  # past links, as `..` leaves the folder that is meant
        path = os.path.relpath(picture.path.parent.resolve() / path, out.resolve())
        if path != path.encode("utf-8", "replace").decode():
            raise InputError(f"{picture.path}: a path that is not UTF-8; rename its folders")
    where = {"imagePath": path, "imageData": None}
    where |= {"imageHeight": picture.size[0], "imageWidth": picture.size[1]}
    made = {"version": "5.0.1", "flags": {}, "shapes": shapes} | where
    return json.dumps(made, indent=1, ensure_ascii=False)


class Coco:
    def __init__(self, classes: Sequence[str], args: Any):
        self.args = args
        categories = [{"id": c, "name": name} for c, name in enumerate(classes, 1)]
        self.all: dict[str, list] = {"images": [], "annotations": [], "categories": categories}

    def add(self, picture: Picture) -> None:
        number, (height, width) = len(self.all["images"]) + 1, picture.size
        entry = {"id": number, "file_name": picture.file, "height": height, "width": width}
        self.all["images"].append(entry)
        rows = self.all["annotations"]
        for row in coco_annotations(picture, self.args.tolerance, self.args.form == "coco-rle"):
            rows.append({"id": len(rows) + 1, "image_id": number} | row)

    def text(self) -> str:
        return json.dumps(self.all, ensure_ascii=False)


class Cvat:
    def __init__(self, classes: Sequence[str], args: Any):
        self.classes, self.args, self.count = classes, args, 0
        self.root = ElementTree.Element("annotations")
        ElementTree.SubElement(self.root, "version").text = "1.1"
        task = ElementTree.SubElement(ElementTree.SubElement(self.root, "meta"), "task")
        labels = ElementTree.SubElement(task, "labels")
        for name in classes:
            ElementTree.SubElement(ElementTree.SubElement(labels, "label"), "name").text = name

    def add(self, picture: Picture) -> None:
        height, width = picture.size
        known = {"id": self.count, "name": picture.file, "width": width, "height": height}
        image = ElementTree.SubElement(self.root, "image", {k: str(v) for k, v in known.items()})
        self.count += 1
        for number, (name, ring) in enumerate(picture.shapes(self.classes, self.args.tolerance)):
            points = ";".join(f"{x},{y}" for x, y in ring.tolist())
            more = {"occluded": "0", "source": "auto", "points": points, "z_order": str(number)}
            ElementTree.SubElement(image, "polygon", {"label": name, **more})

    def text(self) -> str:
        ElementTree.indent(self.root)
        return ElementTree.tostring(self.root, encoding="unicode", xml_declaration=True) + "\n"


class LabelStudio:
    def __init__(self, classes: Sequence[str], args: Any):
        self.classes, self.args, self.tasks = classes, args, []

    def add(self, picture: Picture) -> None:
        height, width = picture.size
        shared = {"type": "polygonlabels", "from_name": "label", "to_name": "image"}
        shared |= {"original_width": width, "original_height": height, "image_rotation": 0}
        result = []
        for number, (name, ring) in enumerate(picture.shapes(self.classes, self.args.tolerance)):
            points = (ring * (100 / np.array([width, height]))).round(4).tolist()
            value = {"points": points, "polygonlabels": [name], "closed": True}
            result.append({"id": f"{picture.id}-{number}", "value": value} | shared)
        data = {"image": self.args.prefix + urllib.parse.quote(picture.file)}
        made = [{"model_version": self.args.labels.name, "result": result}]
        self.tasks.append({"data": data, "predictions": made})

    def text(self) -> str:
        return json.dumps(self.tasks, ensure_ascii=False)


WRITERS: dict[str, Callable[..., Any]] = {"coco": Coco, "coco-rle": Coco, "cvat": Cvat}
WRITERS |= {"labelstudio": LabelStudio}
