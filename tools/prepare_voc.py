#!/usr/bin/env python
"""Check every file of a VOC 2012 devkit, add the train_aug list and SBD's masks.

    python tools/prepare_voc.py --voc VOCdevkit/VOC2012 --sbd benchmark_RELEASE/dataset

About 2 minutes on 4 cores for all of VOC and SBD; a later run only checks. Files of the devkit are
never changed: lists that are there are taken as they are, an absent one is written if the devkit
has images of it, and masks are added (SegmentationClassAug: VOC's own where there is one, else
SBD's). A partial devkit is fine; what it lacks is named. Exit status 1 if a file is broken or no
split is complete.
"""

import argparse
import contextlib
import errno
import functools
import importlib.util
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `core` from any directory
from core import files
from core.data import images
from core.data.datasets import VOC_CLASSES, DataRoot
from core.errors import InputError
from core.run import options
from core.run.main import run_main
from core.run.parallel import over_chunks

import numpy as np

LISTS = Path(__file__).resolve().parent.parent / "data"  # the published lists and image labels
AUG = "SegmentationClassAug"
# What each split needs beside its images. VOC publishes neither labels nor masks of test.
NEEDS = {
    "train_aug": ("labels", AUG),
    "train": ("labels", "SegmentationClass"),
    "val": ("labels", "SegmentationClass"),
    "test": (),
}
TAR = "VOCtrainval_11-May-2012.tar from the PASCAL VOC 2012 page"
SOURCES = {
    "image": f"{TAR}; images of test: the test tar of the PASCAL VOC evaluation server",
    "labels": f"{TAR} has Annotations/; or write labels.txt (data/README.md)",
    "SegmentationClass": f"{TAR}; without, nothing can be scored",
    AUG: "SBD's benchmark.tgz, then --sbd; optional: the method does not use these masks",
}
MAX_MAT_BYTES = 8 << 20  # SBD's files have some 10 kB
# One of (id, part, kind, message); the part is "image", "labels" or a folder of masks.
Problems = list[tuple[str, str, str, str]]
KINDS = ("broken", "missing", "differs")  # in the order they are printed
Needs = list[tuple[str, tuple[set[str], list[str]]]]  # image, its parts and published labels


def read_sbd_mask(path: Path, n_labels: int) -> np.ndarray:
    """The class mask in one of SBD's `cls/*.mat`, uint8 (H, W), 0..n_labels - 1.

    These are MATLAB 5 files, plain data: reading them runs no code. Raises InputError if the file
    is damaged, holds no class mask, or has labels outside the classes.
    """
    from scipy.io import loadmat  # an extra, which main() looks for

    try:
        if path.stat().st_size > MAX_MAT_BYTES:
            raise ValueError("too large")
        mask = np.asarray(loadmat(path, variable_names=["GTcls"])["GTcls"][0]["Segmentation"][0])
        if mask.ndim != 2 or mask.dtype.kind not in "iu" or mask.size == 0:
            raise ValueError("no mask")
    except Exception:  # loadmat raises a dozen types on damaged files
        raise InputError(f"{path}: damaged or not an SBD mask; unpack SBD again") from None
    for label in (mask.min(), mask.max()):
        if not 0 <= label < n_labels:
            raise InputError(f"{path}: label {label} is outside 0..{n_labels - 1}")
    return mask.astype(np.uint8)


def make_mask(data: DataRoot, image_id: str, size: tuple[int, int], sbd: Path) -> None:
    """Write the mask of SegmentationClassAug of an image of `size`, if there is one to be had."""
    own, mat = data.mask_path(image_id), sbd / "cls" / f"{image_id}.mat"
    if own.exists():
        mask = images.read_label(own, data.n_labels, size)
    elif mat.exists():
        mask = read_sbd_mask(mat, data.n_labels)
        if mask.shape != size:
            raise InputError(f"{mat}: mask {mask.shape}, image {size} (height, width)")
    else:
        return
    images.write_label(data.mask_path(image_id, AUG), mask)


def check(data: DataRoot, sbd: Path | None, needs: Needs) -> Problems:
    """Decode images and their masks, making absent ones; compare sizes, look at the labels."""
    problems: Problems = []

    @contextlib.contextmanager
    def noting(image_id: str, part: str) -> Iterator[None]:
        try:
            yield
        except InputError as error:  # core says "no such file" or "no such image" of what is absent
            kind = "missing" if ": no such " in str(error) else "broken"
            problems.append((image_id, part, kind, str(error)))

    known: dict[str, list[int]] = {}
    with contextlib.suppress(InputError):  # else each is asked below for what is wrong with it
        known = data.image_labels([i for i, (parts, _) in needs if "labels" in parts])
    for image_id, (parts, published) in needs:
        size = None
        with noting(image_id, "image"):
            size = tuple(images.read_image(data.image_path(image_id)).shape[1:])
        for part in sorted(parts - {"labels"}):
            with noting(image_id, part):
                path = data.mask_path(image_id, part)
                if part == AUG and sbd is not None and size is not None and not path.exists():
                    make_mask(data, image_id, size, sbd)
                images.read_label(path, data.n_labels, size)
        if "labels" in parts:
            with noting(image_id, "labels"):
                labels = (known or data.image_labels([image_id]))[image_id]
                names = [data.classes[number - 1] for number in labels]
                if published and set(names) != set(published):
                    words = f"{image_id}: labels {' '.join(names)}, published {' '.join(published)}"
                    problems.append((image_id, "labels", "differs", words))
    return problems


def place_list(data: DataRoot, split: str) -> tuple[list[str], str]:
    """The ids of a split and where they come from; an absent list is written."""
    path = data.root / "ImageSets" / "Segmentation" / f"{split}.txt"
    published = (LISTS / f"{split}.txt").read_text().split()
    if path.exists():
        ids = data.ids(split)
        fewer, others = len(set(published) - set(ids)), len(set(ids) - set(published))
        where = f"own list: {fewer} published ids are not in it, {others} others are"
        return ids, where if fewer or others else "list as published"
    if any((data.root / "JPEGImages" / f"{i}.jpg").exists() for i in published):
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(path, "\n".join([*published, ""]))
        return published, "list written"
    return [], f"no list written, none of its {len(published)} images is here"


def summary(split: str, ids: list[str], where: str, problems: Problems) -> dict[str, Any]:
    """A row of the table: counts of images, and what can be done with the split."""
    needs, members = NEEDS[split], set(ids)
    found = Counter((part, kind) for i, part, kind, _ in problems if i in members)
    good = {p: len(ids) - found[p, "broken"] - found[p, "missing"] for p in ("image", *needs)}
    row = {"listed": len(ids), "images": good["image"]}
    row |= {"masks": good[needs[-1]] if needs else None, "labels": good.get("labels")}
    row["broken"] = sum(found[part, "broken"] for part in good)
    state = "ready"
    if not ids or row["broken"]:
        state = "broken" if ids else "absent"
    elif good["image"] < len(ids) or good.get("labels", len(ids)) < len(ids):
        state = "incomplete"
    elif good.get("SegmentationClass", len(ids)) < len(ids):
        state = "ready, but without all masks it cannot be scored"
    return row | {"state": state, "list": where}


def prepare(data: DataRoot, sbd: Path | None, jobs: int) -> tuple[dict[str, dict], Problems]:
    """Write what is to be written, check all; the table's rows and the problems."""
    lists = {split: place_list(data, split) for split in NEEDS}
    if sbd is not None:
        (data.root / AUG).mkdir(exist_ok=True)
    lines = map(str.split, (LISTS / "image_labels.txt").read_text().splitlines())
    labels = {i: names for i, *names in lines} if data.classes == VOC_CLASSES else {}
    needs: dict[str, tuple[set[str], list[str]]] = {}
    for split, (ids, _) in lists.items():
        for image_id in ids:
            needs.setdefault(image_id, (set(), labels.get(image_id, [])))[0].update(NEEDS[split])
    look = functools.partial(check, data, sbd)
    problems = list(chain(*over_chunks(look, list(needs.items()), jobs, "check")))
    rows = {split: summary(split, *of_split, problems) for split, of_split in lists.items()}
    return rows, sorted(problems, key=lambda problem: KINDS.index(problem[2]))


def print_report(rows: dict[str, dict], problems: Problems, limit: int) -> None:
    """The table, the first problems, and where to get what is missing."""
    columns = ("listed", "images", "masks", "labels", "broken", "state")
    print(f"{'split':<10}" + "".join(f"{c:>8}" for c in columns))
    for split, row in rows.items():
        cells = "".join(f"{'-' if row[c] is None else row[c]:>8}" for c in columns[:-1])
        print(f"{split:<10}{cells}   {row['state']}; {row['list']}")
    for _, _, kind, message in problems[:limit]:
        print(f"{kind}: {message}")
    if len(problems) > limit:
        print(f"... and {len(problems) - limit} more; --problems N prints them, --json keeps them")
    lacking = {part for _, part, kind, _ in problems if kind == "missing"}
    lacking |= {"image" for row in rows.values() if row["state"] == "absent"}
    for part in sorted(lacking):
        print(f"to get what is missing ({part}): {SOURCES[part]}")


def get_args_parser() -> argparse.ArgumentParser:
    p = options.Parser(__doc__)
    p.add_argument("--voc", type=Path, required=True, help="the VOC2012 folder of a devkit")
    p.add_argument("--sbd", type=Path, help="SBD's dataset/ folder, the one with cls/*.mat")
    p.add_argument("--json", type=Path, metavar="FILE", help="write the report with every problem")
    p.add_argument("--problems", type=options.count, default=20, metavar="N", help="lines to print")
    p.add_argument(
        "--jobs", type=options.integer(0, 256), default=0, help="processes; 0: one per CPU core"
    )
    return p


def check_sbd(sbd: Path) -> None:
    """Raise InputError where SBD's masks are not there or cannot be read."""
    if not (sbd / "cls").is_dir():
        raise InputError(f"{sbd / 'cls'}: no such directory; leave out --sbd, or unpack SBD")
    if importlib.util.find_spec("scipy") is None:
        raise InputError("--sbd: reading SBD's .mat files needs SciPy: pip install scipy")


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser().parse_args(argv)
    if args.json is not None:
        files.check_own(args.json, "splits")
    data = DataRoot(args.voc)
    if args.sbd is not None:
        check_sbd(args.sbd)
    try:
        rows, problems = prepare(data, args.sbd, args.jobs)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        tree = f"cp -rs {data.root.resolve()} DIR"  # a tree of links that can be added to
        raise InputError(f"{data.root}: cannot be written; `{tree}`, then --voc DIR") from None
    print_report(rows, problems, args.problems)
    if args.json is not None:
        named = [dict(zip(("id", "part", "kind", "message"), p, strict=True)) for p in problems]
        files.write_json(args.json, {"splits": rows, "problems": named})
    broken = sum(kind == "broken" for _, _, kind, _ in problems)
    if broken:
        raise InputError(f"{data.root}: broken files ({broken}), named above; replace them")
    if not any(row["state"].startswith("ready") for row in rows.values()):
        raise InputError(f"{data.root}: no split is complete; see above for what to get")


if __name__ == "__main__":
    run_main(main, get_args_parser)
