"""Labels as others' tools export them: labelme, CVAT, Label Studio, COCO, VOC, and tables.

`read` gives an `Entry` for each picture that the files speak of. The shapes in it are drawn when
they are asked for.
"""

import json
import os
import re
import urllib.parse
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from xml.etree import ElementTree

from core import files
from core.errors import InputError
from tools.own import pictures, regions, table
from tools.own.regions import Shape

import numpy as np

AGAIN = "export the labels again"
FORMS = "labelme, COCO and Label Studio's JSON are known"
MAX_BYTES = 1 << 30
# What reading an entry of another form than it should have raises.
NOT_SO = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError)


class Entry(NamedTuple):
    """What a file says of a picture: names it may have (surest first), its (H, W), the shapes."""

    names: Sequence[str]
    size: tuple[int, int] | None
    shapes: list[Shape]


@dataclass
class Labels:
    """All entries, with the file of each; the order of the classes where one is declared."""

    entries: list[tuple[Path, Entry]] = field(default_factory=list)
    order: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, path: Path, entries: Iterable[Entry], order: Iterable[str] = ()) -> None:
        self.entries += [(path, entry) for entry in entries]
        self.order += [name for name in order if name not in self.order]


def sources(path: Path) -> list[Path]:
    """The files of labels that `path` is or holds."""
    if not path.is_dir():
        return [path]
    kinds = (".json", ".xml", ".csv", ".tsv")
    inside = sorted(pictures.walk(path, set()))
    if found := [p for p in inside if p.suffix.lower() in kinds]:
        return found
    hint = " (of .txt it holds: of YOLO's form? export COCO JSON)"
    texts = hint if any(p.suffix.lower() == ".txt" for p in inside) else ""
    raise InputError(f"{path}: no {', '.join(kinds)} file in it{texts}; give the labels' file")


def read(paths: Iterable[Path], known: Callable[[str], bool], separator: str = "auto") -> Labels:
    """Read label files, their form found by looking; known: whether a text names a picture.

    Raises InputError for a form that is not known, or a damaged file.
    """
    labels = Labels()
    for path in paths:
        try:
            if path.suffix.lower() in table.ENDINGS:
                found = table.Table(path, known, separator)
                entries = (Entry((file,), None, [*map(Shape, names)])
                           for file, names in found.classes.items())  # fmt: skip
                labels.add(path, entries, found.columns)
                labels.notes += found.notes
            elif path.suffix.lower() == ".xml":
                labels.add(path, *_xml(path))
            else:
                labels.add(path, *_json(path))
        except NOT_SO as error:
            what = f"an entry is not as it should be ({type(error).__name__}: {error})"
            raise InputError(f"{path}: {what[:200]}; {AGAIN}") from None
    return labels


def _json(path: Path) -> tuple[list[Entry], list[str]]:
    if path.suffix.lower() in (".xlsx", ".xls", ".ods"):
        raise InputError(f"{path}: a spreadsheet; save it as CSV")
    try:
        value = json.loads(files.read_text(path, AGAIN, MAX_BYTES))
    except (ValueError, RecursionError):
        raise InputError(f"{path}: damaged or not JSON; {AGAIN}") from None
    if isinstance(value, dict) and "shapes" in value:
        return [_labelme(value, path)], []
    if isinstance(value, dict) and isinstance(value.get("images"), list):
        return _coco(value, path)
    tasks = value if isinstance(value, list) else [value]
    if tasks and all(isinstance(task, dict) and "data" in task for task in tasks):
        return [e for task in tasks for e in _label_studio(task)], []
    has = ", ".join(map(str, tasks[0])) if tasks and isinstance(tasks[0], dict) else "no objects"
    if "regions" in str(value)[:2000]:
        has += "; of VIA? it exports COCO as well"
    elif isinstance(value, list) and "annotator" in has:
        has += "; of Label Studio's JSON-MIN? take its JSON"
    raise InputError(f"{path}: JSON of no known form (it has {has[:200]}); {FORMS}")


def _labelme(value: dict, path: Path) -> Entry:
    image = str(value.get("imagePath") or path.with_suffix("").name).replace("\\", "/")
    beside = os.path.realpath(path.parent / image)
    width, height = value.get("imageWidth"), value.get("imageHeight")
    shapes = [Shape(str(name)) for name, on in (value.get("flags") or {}).items() if on is True]
    for each in value["shapes"]:
        name, kind = str(each["label"]), each.get("shape_type") or "polygon"
        points = regions.points_of(each["points"])
        if kind == "polygon":
            shapes.append(regions.polygon(name, [points]))
        elif kind == "rectangle" and len(points) == 2:
            shapes.append(regions.box(name, points))
        elif kind == "circle":
            radius = float(np.hypot(*np.subtract(points[1], points[0])))
            shapes.append(regions.ellipse(name, points[0], (radius, radius)))
        elif kind == "mask":
            shapes.append(Shape(name, partial(regions.png, each["mask"], points[0])))
        else:
            shapes.append(Shape(name, None, False))
    size = (int(height), int(width)) if height and width else None
    return Entry((beside, PurePosixPath(image).name, path.stem), size, shapes)


def _xml(path: Path) -> tuple[list[Entry], list[str]]:
    text = files.read_text(path, AGAIN, MAX_BYTES)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise InputError(f"{path}: XML with a DTD is refused; remove it")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError):
        raise InputError(f"{path}: damaged XML; {AGAIN}") from None
    for each in root.iter():
        each.tag = each.tag.rpartition("}")[2]  # without a namespace
    if root.tag == "annotation":  # VOC's, one for a picture
        names = [each.findtext("name", "").strip() for each in root.findall("object")]
        called = (root.findtext("filename", path.stem), path.stem)
        return [Entry(called, None, [Shape(name, None, False) for name in names])], []
    if root.tag != "annotations" or root.find("track") is not None:
        found = "CVAT for video" if root.find("track") is not None else f"<{root.tag}>"
        raise InputError(f"{path}: {found}; of XML, export `CVAT for images 1.1` or VOC")
    order = [each.text for each in root.iterfind("meta//labels/label/name") if each.text]
    return [_cvat(image) for image in root.findall("image")], order


def _cvat(image: ElementTree.Element) -> Entry:
    shapes = []
    for each in sorted(image, key=lambda element: int(element.get("z_order", 0))):
        get, name = each.attrib, each.get("label")
        if name is None:
            continue
        if each.tag == "tag":
            shapes.append(Shape(name))
        elif each.tag == "polygon":
            points = (pair.split(",") for pair in get["points"].split(";") if pair)
            shapes.append(regions.polygon(name, [regions.points_of(points)]))
        elif each.tag == "box":
            corners = regions.points_of([(get["xtl"], get["ytl"]), (get["xbr"], get["ybr"])])
            shapes.append(regions.box(name, corners, turned=get.get("rotation")))
        elif each.tag == "ellipse":
            centre, radii = regions.points_of([(get["cx"], get["cy"]), (get["rx"], get["ry"])])
            shapes.append(regions.ellipse(name, centre, radii, turned=get.get("rotation")))
        elif each.tag == "mask":
            counts = [int(number) for number in get["rle"].split(",")]
            shape = int(get["height"]), int(get["width"])
            corner = int(get["left"]), int(get["top"])
            shapes.append(Shape(name, partial(regions.runs, counts, shape, "C", corner)))
        else:  # polyline, points, skeleton, cuboid
            shapes.append(Shape(name, None, False))
    return Entry((image.attrib["name"],), (int(image.attrib["height"]), int(image.attrib["width"])),
                 shapes)  # fmt: skip


def _label_studio(task: dict) -> list[Entry]:
    """The picture of a task; none where nobody has annotated it."""
    done = [a for a in task.get("annotations") or [] if not a.get("was_cancelled")]
    if not done:
        return []
    texts = [str(text) for text in task["data"].values() if isinstance(text, str)]
    names = [name for text in texts for name in _uploaded(text)]
    shapes: list[Shape] = []
    for result in (result for each in done for result in each["result"]):
        value, kind = result.get("value") or {}, str(result.get("type"))
        names_here = value.get(kind)
        if not (kind.endswith("labels") or kind == "choices") or not isinstance(names_here, list):
            continue  # text, ratings, relations
        shapes += [_percent(str(name), value, kind, result) for name in names_here]
    return [Entry(names, None, shapes)]


def _uploaded(text: str) -> Iterable[str]:
    """Names of the file behind Label Studio's address, and without what an upload puts before."""
    name = urllib.parse.unquote(text.split("?d=")[-1] if "?d=" in text else text.split("?")[0])
    yield name
    yield re.sub(r"^[0-9a-f]{8}-", "", PurePosixPath(name).name)


def _percent(name: str, value: dict, kind: str, result: dict) -> Shape:
    """A result of Label Studio, which measures in percent of the picture."""
    if kind == "choices":
        return Shape(name)
    if "rle" in value:
        size = int(result["original_height"]), int(result["original_width"])
        return Shape(name, partial(regions.brush, value["rle"], size))
    if "points" in value:
        return regions.polygon(name, [regions.points_of(value["points"])], percent=True)
    if "radiusX" in value:
        centre, radii = regions.points_of(
            [(value["x"], value["y"]), (value["radiusX"], value["radiusY"])]
        )
        return regions.ellipse(name, centre, radii, True, value.get("rotation"))
    if kind != "keypointlabels" and "height" in value:
        x, y, width, height = (float(value[key]) for key in ("x", "y", "width", "height"))
        corners = regions.points_of([(x, y), (x + width, y + height)])
        return regions.box(name, corners, percent=True, turned=value.get("rotation"))
    return Shape(name, None, False)


def _coco(value: dict, path: Path) -> tuple[list[Entry], list[str]]:
    if not isinstance(value.get("annotations"), list) or not value.get("categories"):
        what = "COCO's images without annotations and categories"
        raise InputError(f"{path}: {what}; export them with the annotations")
    listed: dict[str, dict[int, dict]] = {"images": {}, "categories": {}}
    for key, by_id in listed.items():
        for each in value[key]:
            if by_id.setdefault(each["id"], each) != each:
                raise InputError(f"{path}: two of {key!r} have the id {each['id']!r}; {AGAIN}")
    names = {number: str(each["name"]) for number, each in listed["categories"].items()}
    shapes = defaultdict(list)
    for each in value["annotations"]:
        if (number := each["category_id"]) not in names:
            raise InputError(f"{path}: category {number} is not among the categories; {AGAIN}")
        shapes[each["image_id"]].append(_coco_shape(names[number], each))
    entries = []
    for image in listed["images"].values():
        size = (int(image["height"]), int(image["width"])) if image.get("width") else None
        entries.append(Entry((str(image["file_name"]),), size, shapes.get(image["id"], [])))
    # A part of a data set may keep the annotations of the rest; ids of another type are none.
    lost = shapes.keys() - listed["images"].keys()
    if lost and (lost == shapes.keys() or {*map(str, lost)} & {*map(str, listed["images"])}):
        what = f"an annotation of image {min(lost, key=str)!r}, which it does not list"
        raise InputError(f"{path}: {what}; {AGAIN}")
    return entries, [names[number] for number in sorted(names)]


def _coco_shape(name: str, each: dict) -> Shape:
    drawn = each.get("segmentation")
    if isinstance(drawn, dict):
        return Shape(name, partial(_coco_runs, drawn))
    if drawn:
        rings = [regions.points_of(zip(ring[::2], ring[1::2], strict=True)) for ring in drawn]
        return regions.polygon(name, [ring for ring in rings if len(ring) > 2])
    if not each.get("bbox"):
        return Shape(name)
    x, y, width, height = map(float, each["bbox"])
    return regions.box(name, regions.points_of([(x, y), (x + width, y + height)]))


def _coco_runs(drawn: dict, size: tuple[int, int]) -> np.ndarray:
    counts, shape = drawn["counts"], (int(drawn["size"][0]), int(drawn["size"][1]))
    if shape != size:
        raise ValueError("runs for a picture of another size")
    if not isinstance(counts, list):
        counts = regions.unpack_coco(counts)
    return regions.runs(counts, shape, "F", (0, 0), size)
