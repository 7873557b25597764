"""One pass over a data root for the doctor: what its pictures, labels and masks hold.

Every picture of the list is decoded, every mask beside it read, so that what would stop a run
after hours is known before it.
"""

import contextlib
import functools
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from core import files
from core.data import datasets, images
from core.errors import InputError
from core.progress import Bar
from core.run import parallel
from tools import prepare_voc

import numpy as np

SMALL, FEW = 64, 30  # pixels of a shorter side, and images of a class, that are worth a word
Finding = tuple[str, str, str, str]  # level, what, what was found, what to do unless ok


@dataclass(frozen=True)
class Picture:
    """What was seen of one id; `size` (height, width) and the rest are unset where `error` is."""

    id: str
    error: str = ""
    size: tuple[int, int] = (0, 0)
    is_turned: bool = False  # by EXIF
    is_deep: bool = False  # 16 bits a channel
    file: tuple[Path, int] | None = None  # and its bytes
    classes: frozenset[int] | None = None  # in its mask; None without one
    is_blank: bool = False  # a mask of 255 alone
    mask_error: str = ""


def look(data: datasets.DataRoot, image_id: str) -> Picture:
    """Decode the picture and its mask."""
    try:
        path = data.image_path(image_id)
        with images.open_checked(path) as image:
            is_deep = images.is_deep(image, path)
        pixels = images.read_image(path)
        with images.open_checked(path) as image:  # after it: see images.read_image
            is_turned = images.orientation(image) != 1
    except InputError as error:
        return Picture(image_id, error=str(error))
    size = (pixels.shape[1], pixels.shape[2])
    seen: frozenset[int] | None = None
    is_blank, wrong = False, ""
    mask = data.mask_path(image_id)
    if mask.exists():
        try:
            values = np.unique(images.read_label(mask, data.n_labels, size)).tolist()
            seen, is_blank = frozenset(values) - {0, images.IGNORE}, values == [images.IGNORE]
        except InputError as error:
            wrong = str(error)
    file = (path, path.stat().st_size)
    return Picture(image_id, "", size, is_turned, is_deep, file, seen, is_blank, wrong)


def look_at_all(data: datasets.DataRoot, ids: Sequence[str], workers: int) -> list[Picture]:
    """`look` at every id in that many processes, with a progress bar."""
    rows = parallel.read_ahead(
        ids, workers, batch_size=None, collate_fn=functools.partial(look, data)
    )
    return list(Bar(rows, "pictures", len(ids), leave=False, disable=None))


def first(names: Sequence[str], count: int = 3) -> str:
    """The first few of the names, and how many more there are."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


def check_pictures(pictures: Sequence[Picture]) -> Iterator[Finding]:
    """Damage, sizes, rotation, depth."""
    if broken := [p for p in pictures if p.error]:
        found = f"{len(broken)} of {len(pictures)} cannot be read; the first: {broken[0].error}"
        yield "FAIL", "images", found, "replace them, or take their ids out of the list"
    good = [p for p in pictures if not p.error]
    if not good:
        return
    by_area = sorted(good, key=lambda p: p.size[0] * p.size[1])
    sizes = [f"{p.size[1]}x{p.size[0]}" for p in (by_area[0], by_area[len(good) // 2], by_area[-1])]
    found = f"{sizes[0]} to {sizes[2]} pixels, the middle one {sizes[1]}"
    tiny = [p.id for p in good if min(p.size) < SMALL]
    found += f"; {len(tiny)} under {SMALL} pixels: {first(tiny)}" if tiny else ""
    yield "warn" if tiny else "ok", "sizes", found, "a tile of them shows little: leave them out"
    for what, ids in (
        ("turned upright as EXIF says; their masks must be upright too", "is_turned"),
        ("of 16 bits, read by the bits that are used", "is_deep"),
    ):
        if those := [p.id for p in good if getattr(p, ids)]:
            yield "ok", "images", f"{len(those)} {what}: {first(those)}", ""


def check_copies(pictures: Sequence[Picture], held_out: frozenset[str]) -> Iterator[Finding]:
    """Files of the same bytes; worst where one is trained on and another scored."""
    sizes = Counter(p.file[1] for p in pictures if p.file)
    groups: dict[str, list[str]] = {}
    for p in pictures:
        if p.file and sizes[p.file[1]] > 1:
            groups.setdefault(files.digest_file(p.file[0]), []).append(p.id)
    twice = [ids for ids in groups.values() if len(ids) > 1]
    if leaks := [ids for ids in twice if 0 < len(held_out & set(ids)) < len(ids)]:
        found = f"{len(leaks)} pictures are in the training list and in val under two ids: "
        remedy = "take one out, or the figures will be too good"
        yield "warn", "copies", found + first([" = ".join(ids) for ids in leaks]), remedy
    elif twice:
        found = f"{len(twice)} pictures are there more than once: "
        yield (
            "warn",
            "copies",
            found + first([" = ".join(ids) for ids in twice]),
            "keep one of each",
        )
    else:
        yield "ok", "copies", "no picture is there twice", ""


def check_labels(data: datasets.DataRoot, labels: dict[str, list[int]]) -> Iterator[Finding]:
    """Images per class, and what a classifier cannot learn from them."""
    members = {c: {i for i, own in labels.items() if c in own} for c in _labels_of(data)}
    counts = {data.classes[c - 1]: len(ids) for c, ids in members.items()}
    none = sum(not own for own in labels.values())
    found = ", ".join(f"{name} {n}" for name, n in counts.items())
    yield "ok", "classes", found + (f"; {none} images of none" if none else ""), ""
    if absent := [name for name, n in counts.items() if not n]:
        remedy = "add images of them, or take them out of classes.txt"
        yield "warn", "classes", f"in no image of the list: {first(absent, 8)}", remedy
    if always := [name for name, n in counts.items() if n == len(labels)]:
        found = f"in every image: {first(always, 8)}"
        yield "warn", "classes", found, "nothing shows where they end: add images without them"
    if few := [f"{name} {n}" for name, n in counts.items() if 0 < n < FEW]:
        found = f"in under {FEW} images: {first(few, 8)}"
        yield "warn", "classes", found, "docs/own_data.md says how many are a beginning"
    together: dict[frozenset[str], list[str]] = {}
    for c, ids in members.items():
        if 0 < len(ids) < len(labels):
            together.setdefault(frozenset(ids), []).append(data.classes[c - 1])
    if pairs := [" with ".join(names) for names in together.values() if len(names) > 1]:
        found = f"never one without the other: {first(pairs)}"
        yield "warn", "classes", found, "nothing tells them apart: add images of one alone"


def _labels_of(data: datasets.DataRoot) -> range:
    return range(1, len(data.classes) + 1)


def check_masks(
    data: datasets.DataRoot,
    split: str,
    seen: Sequence[Picture],
    labels: dict[str, list[int]],
    is_wanted: bool,
) -> Iterator[Finding]:
    """How many there are, damage, and whether they agree with the image-level labels."""
    if wrong := [p.mask_error for p in seen if p.mask_error]:
        found = f"{len(wrong)} of {split} cannot be taken; the first: {wrong[0]}"
        yield "FAIL", "masks", found, "fix or remove them"
    drawn = [p for p in seen if p.classes is not None]
    there = len(drawn) + len(wrong)
    if not there:
        return
    found = f"{there} of {len(seen)} images of {split} have one"
    level = "warn" if is_wanted and there < len(seen) else "ok"
    yield level, "masks", found, "no score without"
    images.check_classes((data.mask_path(p.id) for p in drawn), data.background)
    if blank := [p.id for p in drawn if p.is_blank]:
        found = f"{len(blank)} of {split} hold 255, ignore, alone: {first(blank)}"
        yield "warn", "masks", found, "they count for nothing"
    inside = set().union(*(p.classes or () for p in drawn))
    said_of = set().union(*(labels.get(p.id, ()) for p in drawn))
    if absent := [data.classes[c - 1] for c in sorted(said_of - inside)]:
        found = f"{split} has labels, but no pixel, of {first(absent, 8)}"
        yield "warn", "masks", found, "are the masks' labels counted from 1, as in classes.txt?"
    other = [p for p in drawn if p.id in labels and p.classes != frozenset(labels[p.id])]
    if other:
        names = [data.classes[c - 1] for c in sorted(other[0].classes or frozenset())]
        said = [data.classes[c - 1] for c in labels[other[0].id]]
        found = f"{len(other)} of {len(drawn)} of {split} hold other classes than the image-level "
        found += f"labels say: {other[0].id} {' '.join(names) or 'none'}, labelled "
        found += " ".join(said) or "none"
        level = "warn" if len(other) > len(drawn) // 10 else "ok"  # annotators overlook some
        yield level, "masks", found, "is classes.txt in the order of the masks' labels?"


def check_lists(data: datasets.DataRoot, split: str) -> Iterator[Finding]:
    """Of VOC the published lists; of other data what lists there are."""
    folder = data.root / "ImageSets" / "Segmentation"
    is_voc = data.classes == datasets.VOC_CLASSES
    names = ("train_aug", "train", "val", "test") if is_voc else sorted(_stems(folder))
    for name in names:
        if not (folder / f"{name}.txt").exists():
            level = "ok" if name == "test" else "warn"
            yield level, "list", f"no {name}.txt", "data/README.md says what it is for"
            continue
        try:
            listed = data.ids(name)
        except InputError as error:
            if name in (split, "train", "val"):
                raise
            yield "warn", "list", str(error), "no stage reads it"
            continue
        found, level = f"{name} has {len(listed)} ids", "ok"
        published = (prepare_voc.LISTS / f"{name}.txt").read_text().split() if is_voc else listed
        if set(listed) != set(published):
            found, level = f"{found}, VOC's {len(published)}", "warn"
        yield level, "list", found, "figures will not compare with published ones"


def _stems(folder: Path) -> list[str]:
    names = [n for n in os.listdir(folder) if n.endswith(".txt") and not n.startswith(".")]
    return [os.path.splitext(n)[0] for n in names]


def check(root: Path, split: str, workers: int) -> Iterator[Finding]:
    """All findings on a data root; pictures are decoded in `workers` processes.

    Raises InputError for what a stage would refuse before it looks at pictures.
    """
    data = datasets.DataRoot(root)
    ids = data.ids(split)
    labels = data.image_labels(ids)
    missing = data.missing_images(ids)
    found = f"{split}: {len(ids)} images with labels, {len(missing)} images missing"
    remedy = f"{min(missing, default='')} is the first; restore it or take its id out of the list"
    yield "FAIL" if missing else "ok", "data", found, remedy
    yield from check_lists(data, split)
    yield from check_labels(data, labels)
    lists = {split: ids}
    folder = data.root / "ImageSets" / "Segmentation"
    lists |= {s: data.ids(s) for s in ("train", "val") if (folder / f"{s}.txt").exists()}
    for name, listed in lists.items():
        if name != split and (gone := data.missing_images(listed)):
            found = f"{name}: {len(listed)} images, {len(gone)} of them missing"
            yield "FAIL", "data", found, f"{min(gone)} is the first; take its id out of the list"
            missing |= gone
        if name == "val" != split and (both := set(ids) & set(listed)):
            found = f"{len(both)} of val's {len(listed)} images are in {split}"
            yield "warn", "data", found, "its figures will be of what was trained on"
    every = [i for i in dict.fromkeys(i for ids in lists.values() for i in ids) if i not in missing]
    pictures = {p.id: p for p in look_at_all(data, every, workers)}
    yield from check_pictures(list(pictures.values()))
    held_out = frozenset(lists.get("val", ())) - set(ids)
    yield from check_copies(list(pictures.values()), held_out)
    for name, listed in lists.items():
        with contextlib.suppress(InputError):  # only the list to train on needs labels
            labels = labels | data.image_labels(listed)
        seen = [pictures[i] for i in listed if i in pictures]
        yield from check_masks(data, name, seen, labels, is_wanted=name != split)
