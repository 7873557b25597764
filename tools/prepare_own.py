#!/usr/bin/env python
"""Make a data root of your own pictures and the labels that you have for them.

    python tools/prepare_own.py ~/pictures --out my                       # a folder for each class
    python tools/prepare_own.py ~/pictures --labels labels.csv --out my   # file,label
    python tools/prepare_own.py ~/pictures --labels export.json --out my --with-masks

Labels: a table (CSV: names, several of them, or a column of 0 and 1 for each class), or the files
of labelme, CVAT (for images), Label Studio, COCO or VOC; a file, or a folder of them. Or --masks: a
folder of index PNGs. Pictures are read from sub-folders as well. They are copied as they are; webp,
bmp and tif become PNG. What you have is never changed. docs/own_data.md has the details.
"""

import argparse
import contextlib
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `core` from any directory
from core import files
from core.data import images
from core.data.datasets import NO_GROUND
from core.errors import InputError
from core.progress import Bar
from core.run import options
from core.run.main import run_main
from tools.own import annotations, pictures
from tools.own.found import (
    NOTHING,
    UNKNOWN,
    Found,
    by_folder,
    by_labels,
    choose_classes,
    draw,
    find_masks,
    plain,
    probe_all,
    read_masks,
    split,
    tidy,
)

import numpy as np

RECORD = "own.json"  # by which this tool knows what it made
DESIGN = 4  # raise it when the same input gives other output
NOTES = 20  # lines of notes to print


def write(root: Path, found: Found, order: list[str], args: Any) -> dict[str, Any]:
    """Write the data root; what the record says of it."""
    ids = pictures.ids_of(found.labels)
    for folder in ("JPEGImages", "ImageSets/Segmentation", "SegmentationClass"):
        (root / folder).mkdir(parents=True)
    without = Counter[str]()
    for picture, image_id in Bar(ids.items(), "write", unit="image"):
        what, mask = found.probes[picture], None
        if picture in found.masks:
            mask = images.read_label(found.masks[picture], 255, what.size)
            mask = mask // 255 if found.binary else mask
        elif args.with_masks:
            rest = 0 if found.background else images.IGNORE
            mask = draw(found.entries[picture], found.labels[picture], what.size, order, rest)
        pictures.write(picture, what, mask is not None, root / "JPEGImages" / image_id)
        if isinstance(mask, np.ndarray):
            images.write_label(root / "SegmentationClass" / f"{image_id}.png", mask)
        elif mask:
            without[mask] += 1
    found.notes += [f"{number} without a mask: {why}" for why, number in without.items()]
    labels = {ids[picture]: names for picture, names in found.labels.items()}
    val = split(labels, args.val, args.seed)
    lists = {"train": [i for i in labels if i not in val], "val": [i for i in labels if i in val]}
    if args.val and not val:
        found.notes.append("too few pictures for a validation list; a higher --val makes one")
    rows = ["\t".join([i, *(c for c in order if c in some)]) for i, some in labels.items()]
    texts = {f"ImageSets/Segmentation/{name}": some for name, some in lists.items() if some}
    texts |= {"ImageSets/Segmentation/train_aug": lists["train"], "labels": rows}
    texts["classes"] = found.lines(order)
    for name, lines in texts.items():
        files.write_text(root / f"{name}.txt", "\n".join([*lines, ""]))
    if not any((root / "SegmentationClass").iterdir()):
        (root / "SegmentationClass").rmdir()
    table = {
        name: {list_: sum(name in labels[i] for i in some) for list_, some in lists.items()}
        for name in order
    }
    none = {list_: sum(not labels[i] for i in some) for list_, some in lists.items()}
    return {
        "pictures": {name: len(some) for name, some in lists.items()},
        "classes": table,
        "none_of_them": none,
        "notes": found.notes,
        "left_out": dict(found.left),
    }


def made_before(out: Path, made_of: dict[str, Any], overwrite: bool) -> bool:
    """Whether `out` holds this very data root; raises `InputError` if it holds anything else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    record = out / RECORD
    if not record.is_file():
        # Not even with --overwrite: what lies there is not this tool's to delete.
        raise InputError(f"{out} holds other files than this tool makes; choose another --out")
    there = files.read_json(record, "choose another --out or delete the directory")
    before = there.get("made_of")
    before = before if isinstance(before, dict) else {}
    changes = [key for key in made_of if before.get(key) != made_of[key]]
    if changes and not overwrite:
        what = ", ".join(changes)
        raise InputError(f"{out} was made of other {what}; --overwrite makes it again")
    if not overwrite and (gone := sorted(set(there.get("files", [])) - set(files_in(out)))):
        what = f"{len(gone)} of its files missing, as {gone[0]}"
        raise InputError(f"{out}: {what}; --overwrite makes it again")
    more = sorted(set(files_in(out)) - set(there.get("files", [])) - {RECORD})
    if overwrite and more:
        what = f"{len(more)} files that this tool did not make, as {more[0]}"
        raise InputError(f"{out} holds {what}; move them, --overwrite would delete them")
    return not overwrite


def files_in(root: Path) -> list[str]:
    """The files below a folder, by their paths in it."""
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if not p.is_dir())


def digest(paths: Iterable[Path]) -> str:
    """A digest of names, sizes and times of the files that go in."""
    stats = []
    for path in paths:
        stats.append(os.path.realpath(path))  # Path.resolve raises for a link to itself
        with contextlib.suppress(OSError):  # of a link that leads nowhere
            found = path.stat()
            stats.append(f"{found.st_size} {found.st_mtime_ns}")
    return files.digest_text(stats)


def print_report(record: dict[str, Any]) -> None:
    """Pictures of each class in each list, notes, and what was left out."""
    lists = [name for name, number in record["pictures"].items() if number]
    rows = record["classes"] | {"(none of them)": record["none_of_them"]}
    rows |= {"pictures": record["pictures"]}
    width = max(map(len, rows))
    print(f"{'class':<{width}}" + "".join(f"{name:>8}" for name in lists))
    for name, counts in rows.items():
        print(f"{name:<{width}}" + "".join(f"{counts[each]:>8}" for each in lists))
    for note in record["notes"][:NOTES]:
        print(f"note: {note}")
    if len(record["notes"]) > NOTES:
        print(f"note: {len(record['notes']) - NOTES} more, in {RECORD}")
    for reason, names in record["left_out"].items():
        print(f"left out: {len(names)} as {names[0]}: {reason}")


def read_classes(path: Path, of_masks: bool) -> tuple[list[str], bool]:
    """The names in a list of classes, without the background; whether there is one.

    Of masks the place of a name is its label.
    """
    lines = files.read_text(path, "list one class a line").splitlines()
    names = [tidy(line) for line in lines if line.strip()]
    others = {"background", *UNKNOWN}
    bare = re.sub(r"^\d+\W+", "", names[0]) if names else ""
    if plain(bare) in others and bare != names[0]:
        what = f"{names[0]!r} has a number before the name, and would be a class"
        raise InputError(f"{path}: {what}; list the names alone, in the order of their labels")
    background = not names or NO_GROUND.fullmatch(names[0]) is None
    if plain(" ".join(names[1:2])) == "background" and plain(names[0]) in UNKNOWN:
        names.pop(0)  # labelme's __ignore__ is -1
    if names and (not background or plain(names[0]) in others):
        names.pop(0)  # of label 0
    while names and plain(names[-1]) in others:
        names.pop()
    within = [name for name in names if plain(name) in others]
    if within and of_masks:
        what = f"{within[0]!r} stands among the classes and counts as one of their labels"
        raise InputError(f"{path}: {what}; write its pixels as 255 and leave it out")
    names = [name for name in names if name not in within]
    if not names or len(set(names)) < len(names):
        raise InputError(f"{path}: needs one class name a line, each once")
    return names, background


def gather(args: argparse.Namespace, out: Path) -> tuple[Found, list[str]]:
    """The pictures with their labels, and the classes in order."""
    masks = args.masks
    for path in (args.labels, masks, args.classes):
        if path is not None and not path.exists():
            raise InputError(f"{path}: no such file or folder")
    if args.with_masks and args.labels is None:
        raise InputError("--with-masks draws the outlines in --labels; give those")
    if masks and (args.with_masks or (args.labels and not args.classes)):
        what = "--masks goes without --with-masks" if args.with_masks else "--masks and --labels"
        remedy = "" if args.with_masks else " need --classes FILE: the names of the masks' labels"
        raise InputError(what + remedy)
    apart = [masks] if masks and masks.resolve() not in map(Path.resolve, args.pictures) else []
    found = Found(pictures.find(args.pictures, [out, *apart]))
    if not found.pictures:
        endings = ", ".join(pictures.ENDINGS)
        raise InputError(f"{args.pictures[0]}: no pictures in it ({endings})")
    if others := pictures.others(args.pictures, [out, *apart]):
        what = f"{len(others)} other files, as {others[0]}: no pictures by their endings"
        found.notes.append(what)
    given = args.classes or (masks / "classes.txt" if masks else None)
    names: list[str] = []
    if given and given.exists():
        names, found.background = read_classes(given, masks is not None)
    if masks:
        find_masks(found, masks, args.pictures, out)
    if args.labels:
        by_labels(found, args.labels, args.separator, args.rest_negative)
    elif masks:
        for picture in found.pictures:
            if picture in found.masks:
                found.labels[picture] = set()
            else:
                found.leave(picture, "no mask")
    else:
        by_folder(found, args.pictures[0])
    return found, names


def get_args_parser() -> options.Parser:
    p = options.Parser(__doc__)
    words = "folders of pictures (or pictures); without --labels and --masks, of a folder a class"
    p.add_argument("pictures", type=Path, nargs="+", help=words)
    p.add_argument("--out", type=Path, required=True, help="directory of the data root")
    p.add_argument("--labels", type=Path, help="a file of labels, or a folder of such files")
    p.add_argument("--masks", type=Path, help="folder of index PNGs: 0, 1 to C, 255 for unknown")
    words = "names of the classes, one a line, in order; others are left out"
    p.add_argument("--classes", type=Path, metavar="FILE", help=words)
    p.add_argument("--val", type=options.number(0, 0.9), default=0.1, help="share to validate on")
    p.add_argument("--seed", type=options.seed, default=0, help="another seed, other lists")
    words = "draw the outlines of the labels as ground truth (SegmentationClass)"
    p.add_argument("--with-masks", action="store_true", help=words)
    words = "more names (of folders, labels) that mean no class, as `none` and `background` do"
    p.add_argument("--negatives", nargs="+", default=[], metavar="NAME", help=words)
    words = "pictures that --labels doesn't name have none of the classes"
    p.add_argument("--rest-negative", action="store_true", help=words)
    words = "what parts the labels in a cell of a table: characters, or space, tab, none"
    p.add_argument("--separator", default="auto", help=words)
    words = "make it again: replace the data root that this tool made in --out"
    p.add_argument("--overwrite", how=True, action="store_true", help=words)
    return p


def main(args: argparse.Namespace) -> None:
    out = args.out.resolve()
    partial, old = (out.parent / f".{out.name}.own-{word}" for word in ("partial", "old"))
    if old.exists() and not out.exists():  # stopped between the two renames at the end
        old.rename(out)
    found, given = gather(args, out)
    labels = annotations.sources(args.labels) if args.labels else []
    inputs = digest([*(p.path for p in found.pictures), *labels, *found.masks.values()])
    made_of = {"settings": args.settings, "classes": found.lines(given), "inputs": inputs}
    made_of["design"] = DESIGN
    if made_before(out, made_of, args.overwrite):
        print(f"{args.out}: already made of these with these settings")
        return
    files.check_folder(out)
    probe_all(found)
    nothing = NOTHING | set(map(plain, args.negatives))
    if args.masks:
        found.order = given
        read_masks(found, args.masks, take_labels=args.labels is None)
        given = found.order
    order = choose_classes(found, given, args.labels or args.masks or args.pictures[0], nothing)
    outlines = (s for some in found.entries.values() for e in some for s in e.shapes)
    if args.with_masks and not any(s.firm and s.region for s in outlines):
        raise InputError(f"{args.labels}: no outline in it to draw; leave out --with-masks")
    # Made beside `out` and renamed at the end: what stands there is always whole.
    shutil.rmtree(partial, ignore_errors=True)
    try:
        record = write(partial, found, order, args)
        record = {"made_of": made_of, **record, "files": files_in(partial)}
        files.write_json(partial / RECORD, record)
        files.replace_folder(partial, out, old)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print_report(record)
    print(f"{args.out}: ready; next: python tools/doctor.py --data {args.out}")


if __name__ == "__main__":
    run_main(lambda: main(get_args_parser().parse_args()), get_args_parser)
