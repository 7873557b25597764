"""One dataset layout for VOC, SBD, synthetic and own data; the training views made of it.

    ROOT/JPEGImages/<id>.jpg                       (.jpeg, .png, .webp, .bmp and .tif do as well)
    ROOT/ImageSets/Segmentation/<split>.txt        one id a line
    ROOT/labels.txt  or  ROOT/Annotations/<id>.xml image-level labels
    ROOT/SegmentationClass/<id>.png                ground truth, where there is any
    ROOT/classes.txt                               class names, one a line (VOC's 20 otherwise)

Nothing here assumes 20 classes or that masks exist. Where classes.txt begins with the line
`background: none`, every pixel belongs to a class.
"""

import functools
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from core import files
from core.data import images, transforms
from core.errors import InputError

import numpy as np
import torch
from torch import Tensor

FOLDERS = ("JPEGImages", "ImageSets", "Annotations", "SegmentationClass")
VOC_CLASSES = (  # noqa: SIM905 - reads better than twenty quoted words
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike "
    "person pottedplant sheep sofa train tvmonitor"
).split()
# Names of 0 and 255 in other data sets, which no class may have.
NO_CLASS = re.compile(r"[_\- ]*(background|ignore|void|unlabeled)[_\- ]*", re.IGNORECASE)
NO_GROUND = re.compile(r"background\s*:\s*none", re.IGNORECASE)  # first line of a classes.txt
# A line of DeepLab's lists: `/JPEGImages/<id>.jpg /SegmentationClassAug/<id>.png`.
PAIR = re.compile(
    r"(?:\S*/)?JPEGImages/(\S+?)\.(?:jpe?g|png|webp|bmp|tiff?)(?:\s|$)", re.IGNORECASE
)

# What no name may hold: what parts folders, controls, what ends a line of a list, half characters.
BAD = re.compile(r"[/\\\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def check_name(name: str, path: Path, what: str) -> str:
    """Return an id or class name that is safe as part of a file name, or raise InputError."""
    bad = not name or name.startswith(".") or BAD.search(name)
    if bad or len(name.encode("utf-8", "replace")) > 200:
        raise InputError(f"{path}: {what} {name[:80]!r} cannot be part of a file name; rename it")
    return name


def _lines(path: Path, remedy: str) -> list[str]:
    return [line.strip() for line in files.read_text(path, remedy).splitlines() if line.strip()]


class DataRoot:
    """A data set in the layout above; `classes` are its C foreground names, of the labels 1..C.

    `background`: whether pixels may be of no class, label 0.
    """

    def __init__(self, root: Path):
        self.root = root
        if not root.is_dir():
            raise InputError(f"{root}: no such directory; give the data root with --data")
        if not (root / "JPEGImages").is_dir():
            inside = sorted(root.glob("*/JPEGImages")) + sorted(root.glob("*/*/JPEGImages"))
            remedy = f"is {inside[0].parent} meant?" if inside else "see data/README.md"
            raise InputError(f"{root / 'JPEGImages'}: no such directory; {remedy}")
        path = root / "classes.txt"
        self.classes: list[str] = VOC_CLASSES
        self.background = True
        if os.path.lexists(path):  # a link that leads nowhere is no VOC
            first, *others = lines = _lines(path, "list the classes") or [""]
            self.background = NO_GROUND.fullmatch(first) is None
            names = lines if self.background else others
            self.classes = [check_name(name, path, "class") for name in names]
            if not 1 <= len(self.classes) <= 254 or len(set(self.classes)) < len(self.classes):
                raise InputError(f"{path}: needs 1 to 254 class names, each once")
            if any(map(NO_GROUND.fullmatch, self.classes)):
                raise InputError(f"{path}: let `background: none` be the first line")
            for name in self.classes:
                if NO_CLASS.fullmatch(name):
                    what = "0 is always the background and 255 ignored"
                    raise InputError(f"{path}: leave {name!r} out; of the labels {what}")

    @property
    def n_labels(self) -> int:
        """Number of pixel labels: the classes and the background."""
        return len(self.classes) + 1

    def ids(self, split: str) -> list[str]:
        """The ids of a split, in the order of its list, which may be one of DeepLab's.

        Raises InputError for a list that is missing or empty, an id twice or unfit as a file name.
        """
        path = self.root / "ImageSets" / "Segmentation" / f"{split}.txt"
        lines = _lines(path, "list one image id a line; of VOC tools/prepare_voc.py does it")
        ids = [pair[1] if (pair := PAIR.match(line)) else line for line in lines]
        if not ids:
            raise InputError(f"{path}: the split is empty; list one image id a line")
        if twice := [i for i, n in Counter(ids).items() if n > 1]:
            raise InputError(f"{path}: id {twice[0][:80]!r} is listed twice; remove one")
        return [check_name(i, path, "id") for i in ids]

    def image_path(self, image_id: str) -> Path:
        """The image of an id, whichever extension it has.

        Raises InputError where there is none, or more than one.
        """
        folder = self.root / "JPEGImages"
        names = self._names.get(image_id, [f"{image_id}.jpg"])
        if len(names) > 1:
            raise InputError(f"{folder / names[0]}: {names[1]} has the same id; remove one")
        if not (folder / names[0]).is_file():
            form = functools.partial(unicodedata.normalize, "NFC")
            alike = {form(name) for name in self._names} - self._names.keys()
            hint = " (there it is spelled in another Unicode form; rename one)"
            what = f"no such image, yet its id is in the list{hint * (form(image_id) in alike)}"
            raise InputError(f"{folder / names[0]}: {what}")
        return folder / names[0]

    def read_images(self, ids: Sequence[str]) -> None:
        """Decode these images: an InputError for one that is missing or damaged."""
        for image_id in ids:
            images.read_image(self.image_path(image_id))

    @functools.cached_property
    def _names(self) -> dict[str, list[str]]:
        """Id -> names of its files in JPEGImages."""
        names: dict[str, list[str]] = {}
        for name in sorted(os.listdir(self.root / "JPEGImages")):
            stem, ending = os.path.splitext(name)
            if ending.lower() in images.ENDINGS:
                names.setdefault(stem, []).append(name)
        return names

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k != "_names"}  # long, and soon made

    def missing_images(self, ids: Sequence[str]) -> set[str]:
        """Those of the ids that have no image."""
        return set(ids) - self._names.keys()

    def mask_path(self, image_id: str, folder: str = "SegmentationClass") -> Path:
        """The ground-truth label map of an id."""
        return self.root / folder / f"{image_id}.png"

    def image_labels(self, ids: Sequence[str], need_class: bool = True) -> dict[str, list[int]]:
        """Sorted class indices (1..C) in each image, from `labels.txt` or the VOC annotations.

        An id alone, or an annotation without objects, is a picture with none of the classes. Raises
        InputError for an image without a line or file, an unknown class, a damaged file, or, with
        `need_class`, where no image has a class.
        """
        path = self.root / "labels.txt"
        index = {name: i for i, name in enumerate(self.classes, 1)}
        found = _read_labels_txt(path) if os.path.lexists(path) else None
        labels = {}
        for image_id in ids:
            source = path if found is not None else self.root / "Annotations" / f"{image_id}.xml"
            names = found.get(image_id) if found is not None else read_annotation(source)
            if names is None:
                what = f"no line for {image_id!r}{_other_spelling(image_id, found or {})}"
                raise InputError(f"{source}: {what}; list its image-level labels, if any, after it")
            if unknown := sorted(set(names) - index.keys()):
                first = ", ".join(self.classes[:6])
                known = f"classes.txt lists the known (VOC's 20 without it): {first} ..."
                what = f"unknown class {unknown[0][:80]!r}{_other_spelling(unknown[0], index)}"
                raise InputError(f"{source}: {what}; {known}")
            labels[image_id] = sorted({index[name] for name in names})
        if not (self.background or all(labels.values())):
            bare = next(i for i in ids if not labels[i])
            what = f"no class for {bare!r}, yet classes.txt says `background: none`"
            raise InputError(f"{path if found else bare}: {what}; add its classes")
        if need_class and labels and not any(labels.values()):
            raise InputError(f"{source}: no class for any image; add the image-level labels")
        return labels

    def known_labels(self, ids: Sequence[str]) -> dict[str, list[int]] | None:
        """`image_labels`, or None where they are not all known, say of a test set."""
        try:
            return self.image_labels(ids, need_class=False)
        except InputError:
            return None

    def digest(self, ids: Sequence[str], labels: dict[str, list[int]] | None = None) -> str:
        """A digest of the class names, the ids and (where given) the image-level labels."""
        rows = (f"{i} {labels[i]}" if labels is not None else i for i in ids)
        ground = "" if self.background else "background: none"
        return files.digest_text([*self.classes, ground, *rows])

    def inputs(
        self, ids: Sequence[str], labels: dict[str, list[int]] | None = None, verify: bool = False
    ) -> dict[str, str]:
        """What a run records of the data: `digest`, and sizes and times of the images' files.

        Verify: a digest of their contents as well.
        """
        paths = [self.image_path(i) for i in ids]
        stats = (f"{p.name} {s.st_size} {s.st_mtime_ns}" for p in paths for s in [p.stat()])
        found = {"data": self.digest(ids, labels), "images": files.digest_text(stats)}
        return found | ({"contents": files.digest_files(paths)} if verify else {})


def _other_spelling(name: str, known: Iterable[str]) -> str:
    """A hint at how the names that are known spell `name`; empty without one."""
    form = functools.partial(unicodedata.normalize, "NFC")
    for other in known:
        if form(other) == form(name):
            return f" (it has {other!r}, in another Unicode form)"
        if other.casefold() == name.casefold():
            return f" (it has {other!r}, in another case)"
        if other.split(".")[0] == name or other == name.split(".")[0]:
            return f" (it has {other!r}: with an extension here, without one there)"
        if "," in other or "," in name:
            return f" (is it a CSV file? it has {other[:40]!r}: separate by spaces or tabs)"
        if " " in other and name in other.split():
            return f" (it has {other!r}: where names hold spaces, separate by tabs)"
        if " " in name and other in name.split():
            return f" (it has {other!r}: where a line holds a tab, separate all by tabs)"
    return ""


def _read_labels_txt(path: Path) -> dict[str, list[str]]:
    """`id class class ...` a line; all with tabs between where an id or class holds spaces."""
    labels: dict[str, list[str]] = {}
    text = files.read_text(path, "list `id class class ...`")
    for line in filter(str.strip, text.splitlines()):
        image_id, *names = map(str.strip, line.split("\t" if "\t" in text else None))
        if image_id in labels:
            raise InputError(f"{path}: {image_id!r} is listed twice; keep one line")
        labels[image_id] = [name for name in names if name]
    return labels


def read_annotation(path: Path) -> list[str]:
    """Class names of the objects in a VOC annotation, 'difficult' ones included.

    Raises InputError for a missing or damaged file, XML of another form (which is no picture
    without objects), or a DTD (VOC has none; entities can expand).
    """
    text = files.read_text(path, "restore the annotation or write labels.txt", max_bytes=1 << 20)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise InputError(f"{path}: annotations with a DTD are refused; remove it")
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError):
        raise InputError(f"{path}: damaged XML; restore the annotation") from None
    objects = root.findall(".//{*}object")  # in any namespace
    if not objects and (tag := root.tag.rpartition("}")[2]) != "annotation":
        raise InputError(f"{path}: of <{tag}>, no VOC annotation; restore it or write labels.txt")
    names = [element.findtext("{*}name", "").strip() for element in objects]
    if "" in names:
        raise InputError(f"{path}: an object without a name; add it, or remove the object")
    return names


def class_difference(theirs: Any, ours: Any) -> str:
    """One line on the first class that differs from the data set's."""
    count, needed = (len(c) if isinstance(c, list) else "unknown" for c in (theirs, ours))
    if count != needed or count == "unknown":
        return f"made for other classes ({count}, the data set has {needed})"
    i = next(i for i, name in enumerate(ours) if theirs[i] != name)
    change = f"number {i + 1} was {theirs[i]!r}, in the data set it is {ours[i]!r}"
    return f"made for other classes: {change}"


@dataclass
class TrainingViews(torch.utils.data.Dataset):
    """Random training views of the images, addressed by draw = epoch * len(ids) + position.

    The randomness of a view depends on (seed, draw) alone: not on workers, ranks or where a run was
    interrupted. An item is (image, box, target): uint8 (3, crop, crop), the int64 (4,) box `top,
    left, bottom, right` the photograph fills, and the target: float (C,) image labels, or, where
    `label_folder` is given, the uint8 (crop, crop) label map, 255 outside the photograph.
    """

    data: DataRoot
    ids: Sequence[str]
    view: transforms.RandomView
    seed: int
    labels: dict[str, list[int]] = field(default_factory=dict)  # of every id, or a label_folder
    label_folder: Path | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, draw: int) -> tuple[Tensor, Tensor, Tensor]:
        epoch, position = divmod(draw, len(self.ids))
        image_id = self.ids[position]
        rng = np.random.default_rng((self.seed, epoch, position))
        side, mask = self.view.draw_side(rng), None
        image, size = images.read_reduced(self.data.image_path(image_id), side)
        if self.label_folder is not None:
            path = self.label_folder / f"{image_id}.png"
            mask = torch.from_numpy(images.read_label(path, self.data.n_labels, size))
        view, target, box = self.view(image, mask, rng, side)
        if target is None:
            target = torch.zeros(len(self.data.classes))
            target[[c - 1 for c in self.labels[image_id]]] = 1
        return view, box, target

    @staticmethod
    def collate(items: Sequence[tuple[Tensor, Tensor, Tensor]]) -> list[Tensor]:
        """A batch: images (N, 3, crop, crop), channels_last, boxes (N, 4), targets (N, ...)."""
        views, boxes, targets = zip(*items, strict=True)
        return [transforms.stack(views), torch.stack(boxes), torch.stack(targets)]
