"""What is known of somebody's pictures: labels, masks, classes, lists, and what is left out."""

import hashlib
import unicodedata
import warnings
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from core.data import images
from core.data.datasets import check_name
from core.errors import InputError
from core.progress import Bar
from tools.own import annotations
from tools.own import pictures as own_pictures
from tools.own.annotations import Entry
from tools.own.pictures import Index, Picture, Probe

import numpy as np

NOTHING = {"none", "negative", "negatives", "background", "no class", "no_class", "empty"}
UNKNOWN = {"ignore", "void", "unlabeled", "unlabelled"}  # of a region: 255; a picture: left out
SPLITS = {"train", "training", "valid", "val", "validation", "test"}  # folders, not of classes
ROUGH = "a box, a point or a label without an outline in it"


@dataclass
class Found:
    """What is to be written, as far as it is known."""

    pictures: list[Picture]
    labels: dict[Picture, set[str]] = field(default_factory=dict)
    entries: dict[Picture, list[Entry]] = field(default_factory=lambda: defaultdict(list))
    masks: dict[Picture, Path] = field(default_factory=dict)
    probes: dict[Picture, Probe] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)  # of the classes, where one is declared
    background: bool = True  # whether a pixel may be of no class
    binary: bool = False  # of the masks 255 is the object
    notes: list[str] = field(default_factory=list)
    left: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def leave(self, picture: Picture, reason: str) -> None:
        """Leave a picture out."""
        self.left[reason].append(picture.name)
        self.labels.pop(picture, None)

    def lines(self, order: list[str]) -> list[str]:
        """What a classes.txt of these classes holds."""
        return order if self.background else ["background: none", *order]


def tidy(name: str) -> str:
    """A class name as it is written: single spaces, one Unicode form (macOS takes another)."""
    return " ".join(unicodedata.normalize("NFC", name).split())


def plain(name: str) -> str:
    """A class name as it is compared with the words for no class."""
    return tidy(name).strip("_- ").casefold()


def by_folder(found: Found, source: Path) -> None:
    """Labels of pictures in a folder for each class."""
    tops = {p.name.split("/")[0] for p in found.pictures if "/" in p.name}
    if not tops:
        what = "pictures, but no folders of classes; give --labels or --masks"
        raise InputError(f"{source}: {what}, or the folder above")
    if {top.casefold() for top in tops} <= SPLITS:
        folders = " ".join(str(source / top) for top in sorted(tops))
        what = f"{', '.join(sorted(tops))} are lists, not classes; give them one by one"
        raise InputError(f"{source}: {what}: {folders} (new lists are drawn)")
    for picture in found.pictures:
        if "/" in picture.name:
            found.labels[picture] = {picture.name.split("/")[0]}
        else:
            found.leave(picture, "in no folder of a class")


def by_labels(found: Found, source: Path, separator: str, rest_negative: bool) -> None:
    """Labels from a file or a folder of files."""
    index = Index(found.pictures)
    labels = annotations.read(annotations.sources(source), index.knows, separator)
    called: dict[tuple[Path, Picture], str] = {}
    files: dict[Picture, Path] = {}
    absent = []
    for path, entry in labels.entries:
        picture = index.find(entry.names, path)
        if picture is None:
            absent.append(entry.names[0] if entry.names else "an entry without a picture's name")
            continue
        before = called.setdefault((path, picture), entry.names[0])
        if before != entry.names[0]:
            what = f"{before!r} and {entry.names[0]!r} both seem to be {picture.name}"
            raise InputError(f"{path}: {what}; give the pictures in their folders")
        if path.stem in entry.names:
            check_stems(index, picture, files.setdefault(picture, path), path)
        found.labels.setdefault(picture, set()).update(shape.name for shape in entry.shapes)
        found.entries[picture].append(entry)
    if not found.labels:
        names = f"{absent[0]!r}" if absent else "none (nothing is annotated yet?)"
        first = found.pictures[0].name
        raise InputError(f"{source}: labels of other pictures: it has {names}, there is {first!r}")
    found.order, found.notes = labels.order, found.notes + labels.notes
    if absent:
        found.notes.append(f"{len(absent)} labels without a picture, as of {absent[0]!r}")
    for picture in found.pictures:
        if picture not in found.labels and rest_negative:
            found.labels[picture] = set()
        elif picture not in found.labels:
            found.leave(picture, f"no labels in {source.name} (--rest-negative takes them as none)")


def check_stems(index: Index, picture: Picture, first: Path, second: Path) -> None:
    """Refuse two files of labels for one picture, one of them called as another picture is."""
    for path, other in ((second, first), (first, second)):
        own = index.candidates(path.stem)
        if first != second and own and picture not in own:
            what = f"it says that it is of {picture.name}, as {other} does, yet there is"
            remedy = "correct its filename (labelme: imagePath)"
            raise InputError(f"{path}: {what} {min(own).name}; {remedy}")


def find_masks(found: Found, folder: Path, sources: list[Path], out: Path) -> None:
    """Match index PNGs with pictures, by name; in a folder of both they are no pictures."""
    pngs = [p for p in own_pictures.find([folder], [out]) if p.path.suffix.lower() == ".png"]
    if folder.resolve() in {source.resolve() for source in sources}:
        others = {p.path.with_suffix("") for p in found.pictures if p.path.suffix.lower() != ".png"}
        pngs = [p for p in pngs if p.stem.endswith("_mask") or p.path.with_suffix("") in others]
    paths = {p.path for p in pngs}
    found.pictures = [p for p in found.pictures if p.path not in paths]
    index, taken = Index(pngs), dict[Path, Picture]()
    for picture in found.pictures:
        if mask := index.find((picture.stem, f"{picture.stem}_mask"), folder):
            other = taken.setdefault(mask.path, picture)
            if other is not picture:
                what = f"the mask of {other.name} or of {picture.name}?"
                raise InputError(f"{mask.path}: {what} give masks in folders as the pictures'")
            found.masks[picture] = mask.path
    if not found.masks:
        what = "no mask has the name of a picture"
        raise InputError(f"{folder}: {what}; masks are PNGs called x.png or x_mask.png for x.jpg")


def probe_all(found: Found) -> None:
    """Decode every picture; leave those out that fail."""

    def try_one(picture: Picture) -> Probe | str:
        try:
            return own_pictures.probe(picture)
        except InputError as error:
            return str(error).removeprefix(f"{picture.path}: ")

    pictures = [p for p in found.pictures if p in found.labels]
    with warnings.catch_warnings(), ThreadPoolExecutor(4) as pool:
        warnings.simplefilter("ignore")  # out here, as filters are shared by the threads
        results = Bar(pool.map(try_one, pictures), "check", len(pictures), unit="image")
        for picture, result in zip(pictures, results, strict=True):
            if isinstance(result, str):
                found.leave(picture, result)
            else:
                found.probes[picture] = result
                if result.pages > 1:
                    found.notes.append(f"{picture.name}: the first of {result.pages} pages")


def read_masks(found: Found, folder: Path, take_labels: bool) -> None:
    """Check the masks; take the image-level labels from them, if asked."""
    named, values = len(found.order), {}
    for picture in [p for p in found.labels if p in found.masks]:
        path = found.masks[picture]
        try:
            label = images.read_label(path, named + 1 if named else 255, found.probes[picture].size)
            if not (found.background or label.all()):
                raise InputError("holds label 0, yet the classes begin with `background: none`")
        except InputError as error:
            found.leave(picture, f"mask: {str(error).removeprefix(f'{path}: ')}")
            continue
        values[picture] = set(np.unique(label).tolist()) - {0}
    used = set().union(*values.values())
    found.binary = used == {images.IGNORE} and named < 2
    if found.binary:
        found.notes.append("masks of 0 and 255 alone: 255 is taken as the one class, not as ignore")
        values, used = {p: {1} & {min(v, default=0) // 255} for p, v in values.items()}, {1}
    used -= {images.IGNORE}
    if not named and used != set(range(1, len(used) + 1)):
        what = f"the masks hold the labels {', '.join(map(str, sorted(used)))[:80]}"
        raise InputError(f"{folder}: {what}; name those from 1 on with --classes FILE")
    found.order = found.order or [f"class{i}" for i in sorted(used)]
    if take_labels:
        for picture, some in values.items():
            found.labels[picture] = {found.order[v - 1] for v in some - {images.IGNORE}}
        unknown = [p.name for p, some in values.items() if some == {images.IGNORE}]
        if unknown and found.background:
            what = f"{len(unknown)} as {unknown[0]}: masks of 0 and 255, unknown, alone"
            found.notes.append(f"{what}, are taken for pictures with none of the classes")


def choose_classes(found: Found, given: list[str], source: Path, nothing: set[str]) -> list[str]:
    """The classes in their order; found.labels is left with these alone."""
    for picture, names in list(found.labels.items()):
        names = set(map(tidy, names))
        kept = {name for name in names if name and plain(name) not in nothing | UNKNOWN}
        found.labels[picture] = kept
        shapes = [shape for entry in found.entries.get(picture, []) for shape in entry.shapes]
        regions = {tidy(s.name) for s in shapes if s.region or not s.firm}
        unknown = sorted(n for n in names - regions if plain(n) in UNKNOWN - nothing)
        if unknown and not kept and not any(plain(name) in nothing for name in names):
            found.leave(picture, f"labelled {unknown[0]!r}")
    counts = Counter(name for names in found.labels.values() for name in names)
    declared = list(dict.fromkeys(map(tidy, found.order)))
    order = given or [name for name in declared if counts[name]]
    if not given:
        order += sorted(counts.keys() - set(order), key=lambda name: (name.casefold(), name))
    if lone := [n for n in given or declared if not counts[n] and plain(n) not in nothing]:
        what = "kept, but not to be learnt" if given else "left out"
        found.notes.append(f"classes in no picture, {what}: {', '.join(lone)}"[:300])
    if others := sorted(counts.keys() - set(order)):
        found.notes.append(f"not in --classes and left out: {', '.join(others)}"[:300])
    alike = Counter(plain(name) for name in order)
    if twins := [name for name in order if alike[plain(name)] > 1]:
        found.notes.append(f"classes that differ in case alone: {', '.join(twins)}"[:300])
    if not counts.keys() & set(order) or len(order) > 254:
        words = "more than 254 classes" if len(order) > 254 else "no picture with a class"
        why = "".join(f"; left out: {len(n)}, {reason}" for reason, n in found.left.items())
        raise InputError(f"{source}: {words}{why[:300]}")
    for name in order:
        check_name(name, source, "class")
    found.labels = {picture: names & set(order) for picture, names in found.labels.items()}
    for picture in [p for p, names in found.labels.items() if not (names or found.background)]:
        found.leave(picture, "none of the classes, which begin with `background: none`")
    return order


def split(labels: dict[str, set[str]], share: float, seed: int) -> set[str]:
    """The ids to validate on: a share of each class, and of the pictures without any.

    One picture of each class at least stays. Which, depends on the seed and the ids alone.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for image_id in sorted(labels, key=lambda i: hashlib.sha256(f"{seed} {i}".encode()).digest()):
        for name in labels[image_id] or {""}:
            groups[name].append(image_id)
    left, val = {name: len(ids) for name, ids in groups.items()}, set[str]()
    wanted = {name: int(share * number + 0.5) for name, number in left.items()}
    for name in sorted(groups, key=lambda name: (left[name], name)):  # the rare ones choose first
        for others_too in (True, False):  # those that are wanted for all of their classes before
            for image_id in groups[name]:
                names = labels[image_id] or {""}
                if wanted[name] < 1 or (others_too and min(wanted[n] for n in names) < 1):
                    continue
                if image_id not in val and min(left[n] for n in names) > 1:
                    val.add(image_id)
                    for each in names:
                        left[each] -= 1
                        wanted[each] -= 1
    return val if any(labels[i] for i in val) else set()


def draw(
    entries: list[Entry], names: set[str], size: tuple[int, int], order: list[str], rest: int = 0
) -> np.ndarray | str:
    """The label map of a picture, later shapes over earlier ones; or why there is none.

    A box says where an object may be: 255 where no outline lies over it. Rest: the label of pixels
    outside the classes' shapes.
    """
    if other := [entry.size for entry in entries if entry.size not in (None, size)]:
        (h, w), (height, width) = other[0], size
        return f"labels are for {w}x{h} pixels, upright it has {width}x{height}"
    shapes = [shape for entry in entries for shape in entry.shapes]
    outlined = {tidy(s.name) for s in shapes if s.firm and s.region}
    if not names <= outlined or any(not s.firm and s.region is None for s in shapes):
        return ROUGH
    label, index = np.full(size, rest, np.uint8), {name: i for i, name in enumerate(order, 1)}
    for shape in sorted((s for s in shapes if s.region), key=lambda s: s.firm):
        value = index.get(tidy(shape.name), rest)
        hidden = plain(shape.name) in UNKNOWN or (value and not shape.firm)
        try:
            label[shape.region(size)] = images.IGNORE if hidden else value  # type: ignore[misc]
        except (ValueError, TypeError, KeyError, IndexError, OSError, OverflowError):
            return "a damaged shape, or one for another size"
    return label
