#!/usr/bin/env python
"""Check every file of a VOC 2012 devkit, add the train_aug list and SBD's masks.

    python tools/prepare_voc.py --voc VOCdevkit/VOC2012 --sbd benchmark_RELEASE/dataset

About 2 minutes on 4 cores for all of VOC and SBD; a later run only checks. Files of the devkit are
never changed: lists that are there are taken as they are, an absent one is written if the devkit
has images of it, and masks are added (SegmentationClassAug: VOC's own where there is one, else
SBD's). A partial devkit is fine; what it lacks is named. Exit status 1 if a file is broken or no
split is complete.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `core` from any directory
from core import files
from core.data import images
from core.data.datasets import VOC_CLASSES, DataRoot
from core.errors import InputError
from core.run import options
from core.run.main import run_main
from core.run.parallel import Pool

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
CHUNK = 32  # images a task holds: enough to hide the cost of starting one
MAX_MAT_BYTES = 8 << 20  # SBD's files have some 10 kB

# Of one image, for each part it needs ("image", "labels", a folder of masks): None where all is
# well, else (kind, message); the kind is broken, missing or differs.
Finding = dict[str, tuple[str, str] | None]


def read_sbd_mask(path: Path, n_labels: int) -> np.ndarray:
    """The class mask in one of SBD's `cls/*.mat`, uint8 (H, W), 0..n_labels - 1.

    These are MATLAB 5 files, plain data: reading them runs no code. Raises InputError if the file
    is damaged, holds no class mask, or has labels outside the classes.
    """
    from scipy.io import loadmat  # an extra, which main() looks for

    damaged = InputError(f"{path}: damaged or not an SBD mask; unpack SBD again")
    try:
        if path.stat().st_size > MAX_MAT_BYTES:
            raise damaged
        mask = np.asarray(loadmat(path, variable_names=["GTcls"])["GTcls"][0]["Segmentation"][0])
    except Exception:  # loadmat raises a dozen types on damaged files
        raise damaged from None
    if mask.ndim != 2 or mask.dtype.kind not in "iu" or mask.size == 0:
        raise damaged
    if mask.min() < 0 or mask.max() >= n_labels:
        raise InputError(f"{path}: label {mask.max()} is outside the {n_labels} classes")
    return mask.astype(np.uint8)


def read_mask(
    data: DataRoot, image_id: str, folder: str, size: tuple[int, int] | None, sbd: Path | None
) -> np.ndarray:
    """Read a mask of an image of `size`; one of SegmentationClassAug is made where it is absent."""
    path = data.mask_path(image_id, folder)
    if folder == AUG and sbd is not None and size is not None and not path.exists():
        own, mat = data.mask_path(image_id), sbd / "cls" / f"{image_id}.mat"
        if own.exists():
            images.write_label(path, images.read_label(own, data.n_labels, size))
        elif mat.exists():
            mask = read_sbd_mask(mat, data.n_labels)
            if mask.shape != size:
                raise InputError(f"{mat}: mask {mask.shape}, image {size} (height, width)")
            images.write_label(path, mask)
    return images.read_label(path, data.n_labels, size)


def check(
    data: DataRoot, needs: dict[str, set[str]], published: dict[str, list[str]], sbd: Path | None
) -> dict[str, Finding]:
    """Decode each image and its masks, compare sizes, look at the labels."""
    findings: dict[str, Finding] = {}
    known: dict[str, list[int]] = {}
    with contextlib.suppress(InputError):  # else each is asked below for what is wrong with it
        known = data.image_labels([i for i, parts in needs.items() if "labels" in parts])
    for image_id, parts in needs.items():
        finding = findings[image_id] = {}
        image = attempt(finding, "image", lambda i=image_id: images.read_image(data.image_path(i)))
        size = None if image is None else tuple(image.shape[1:])
        for part in sorted(parts - {"labels"}):
            attempt(finding, part, functools.partial(read_mask, data, image_id, part, size, sbd))
        if "labels" in parts:
            read = functools.partial(data.image_labels, [image_id])
            labels = attempt(finding, "labels", lambda read=read: known or read())
            labels = (labels or {}).get(image_id, ())
            names = [data.classes[c - 1] for c in labels]
            other = published.get(image_id)
            if names and other and set(names) != set(other):
                message = f"{image_id}: labels {' '.join(names)}, published {' '.join(other)}"
                finding["labels"] = "differs", message
    return findings


def attempt(finding: Finding, part: str, read: Callable[[], Any]) -> Any:
    """What `read` returns, None on an error; either is noted in the finding."""
    finding[part] = None
    try:
        return read()
    except InputError as error:  # core says "no such file" or "no such image" of what is absent
        finding[part] = "missing" if ": no such " in str(error) else "broken", str(error)


def place_lists(data: DataRoot) -> dict[str, tuple[list[str], str]]:
    """The ids of each split and where they come from; absent lists are written."""
    lists = {}
    for split in NEEDS:
        path = data.root / "ImageSets" / "Segmentation" / f"{split}.txt"
        published = (LISTS / f"{split}.txt").read_text().split()
        if path.exists():
            ids, where = data.ids(split), "list as published"
            fewer, others = len(set(published) - set(ids)), len(set(ids) - set(published))
            if fewer or others:
                where = f"own list: {fewer} published ids are not in it, {others} others are"
        elif any((data.root / "JPEGImages" / f"{i}.jpg").exists() for i in published):
            ids, where = published, "list written"
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write_text(path, "\n".join([*ids, ""]))
        else:
            ids, where = [], f"no list written, none of its {len(published)} images is here"
        lists[split] = ids, where
    return lists


def summary(ids: list[str], needs: tuple[str, ...], findings: dict[str, Finding]) -> dict[str, Any]:
    """A row of the table: counts of images, and what can be done with the split."""

    def count(part: str, *kinds: str | None) -> int:
        problems = (findings[i][part] for i in ids)
        return sum((problem and problem[0]) in kinds for problem in problems)

    row: dict[str, Any] = {"listed": len(ids), "images": count("image", None)}
    row["masks"] = count(needs[-1], None) if needs else None
    row["labels"] = count("labels", None, "differs") if needs else None
    row["broken"] = sum(count(part, "broken") for part in ("image", *needs))
    complete = row["images"] == len(ids) and row["labels"] in (None, len(ids))
    row["state"] = "ready" if complete else "incomplete"
    if not ids or row["broken"]:
        row["state"] = "broken" if ids else "absent"
    elif complete and needs and needs[-1] != AUG and row["masks"] < len(ids):
        row["state"] = "ready, but without all masks it cannot be scored"
    return row


def print_report(rows: dict[str, dict], problems: list[dict], limit: int) -> None:
    """The table, the first problems, and where to get what is missing."""
    columns = ("listed", "images", "masks", "labels", "broken", "state")
    print(f"{'split':<10}" + "".join(f"{c:>8}" for c in columns))
    for split, row in rows.items():
        cells = "".join(f"{'-' if row[c] is None else row[c]:>8}" for c in columns[:-1])
        print(f"{split:<10}{cells}   {row['state']}; {row['list']}")
    for problem in problems[:limit]:
        print(f"{problem['kind']}: {problem['message']}")
    if len(problems) > limit:
        print(f"... and {len(problems) - limit} more; --problems N prints them, --json keeps them")
    lacking = {problem["part"] for problem in problems if problem["kind"] == "missing"}
    lacking |= {"image"} if any(row["state"] == "absent" for row in rows.values()) else set()
    for part in sorted(lacking):
        print(f"to get what is missing ({part}): {SOURCES[part]}")


def prepare(data: DataRoot, sbd: Path | None, jobs: int) -> tuple[dict, dict[str, Finding]]:
    """Write what is to be written, check all; the table's rows and the findings."""
    lists = place_lists(data)
    if sbd is not None:
        (data.root / AUG).mkdir(exist_ok=True)
    needs: dict[str, set[str]] = {}
    for split, (ids, _) in lists.items():
        for image_id in ids:
            needs.setdefault(image_id, set()).update(NEEDS[split])
    published = {}
    if data.classes == VOC_CLASSES:
        lines = (LISTS / "image_labels.txt").read_text().splitlines()
        published = {image_id: names for image_id, *names in map(str.split, lines)}
    findings, items = {}, list(needs.items())
    chunks = [dict(items[i : i + CHUNK]) for i in range(0, len(items), CHUNK)]
    tasks = ((data, chunk, {i: published.get(i) for i in chunk}, sbd) for chunk in chunks)
    bar = tqdm(total=len(items), desc="check", unit="image", dynamic_ncols=True)
    with bar, Pool(jobs if len(chunks) > 8 else 1) as pool:
        for part in pool.map(check, tasks):
            findings.update(part)
            bar.update(len(part))
    rows = {split: summary(ids, NEEDS[split], findings) for split, (ids, _) in lists.items()}
    return {split: row | {"list": lists[split][1]} for split, row in rows.items()}, findings


def get_args_parser() -> argparse.ArgumentParser:
    p = options.Parser(__doc__)
    p.add_argument("--voc", type=Path, required=True, help="the VOC2012 folder of a devkit")
    p.add_argument("--sbd", type=Path, help="SBD's dataset/ folder, the one with cls/*.mat")
    p.add_argument("--json", type=Path, metavar="FILE", help="write the report with every problem")
    p.add_argument("--problems", type=int, default=20, metavar="N", help="lines to print")
    p.add_argument("--jobs", type=int, default=0, help="processes; 0: one per CPU core")
    return p


def main() -> None:
    args = get_args_parser().parse_args()
    data = DataRoot(args.voc)
    if args.sbd is not None and not (args.sbd / "cls").is_dir():
        raise InputError(f"{args.sbd / 'cls'}: no such directory; leave out --sbd, or unpack SBD")
    if args.sbd is not None and importlib.util.find_spec("scipy") is None:
        raise InputError("--sbd: reading SBD's .mat files needs SciPy: pip install scipy")
    try:
        rows, findings = prepare(data, args.sbd, args.jobs)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        tree = f"cp -rs {data.root.resolve()} DIR"  # a tree of links that can be added to
        raise InputError(f"{data.root}: cannot be written; `{tree}`, then --voc DIR") from None
    problems = [
        {"id": image_id, "part": part, "kind": problem[0], "message": problem[1]}
        for image_id, finding in findings.items()
        for part, problem in finding.items()
        if problem is not None
    ]
    problems.sort(key=lambda problem: ("broken", "missing", "differs").index(problem["kind"]))
    print_report(rows, problems, args.problems)
    if args.json is not None:
        files.write_json(args.json, {"splits": rows, "problems": problems})
    broken = sum(problem["kind"] == "broken" for problem in problems)
    if broken:
        raise InputError(f"{data.root}: broken files ({broken}), named above; replace them")
    if not any(row["state"].startswith("ready") for row in rows.values()):
        raise InputError(f"{data.root}: no split is complete; see above for what to get")


if __name__ == "__main__":
    run_main(main, get_args_parser)
