#!/usr/bin/env python
"""Make a data root of COCO: classes, lists, image-level labels and masks, the images as links.

    python tools/prepare_coco.py --annotations instances_train2014.json instances_val2014.json \\
        --images train2014 val2014 --out coco

The 80 classes in COCO's order become the labels 1..80. Lists hold the images that have objects
(82,081 and 40,137 of COCO 2014), with --all-images the others too. Masks are made for val, from
polygons and RLE: the smallest object on top, crowds as their class; or --masks takes a published
archive's. OUT/coco.json records which, with a digest of the masks. Interrupted and started again it
goes on. docs/coco.md has the recipe and the cost of a run.
"""

import argparse
import errno
import functools
import os
import shutil
import sys
from itertools import chain
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `core` from any directory
from core import files
from core.data import images
from core.errors import InputError
from core.run import options
from core.run.main import run_main
from core.run.parallel import over_chunks
from tools import coco
from tools.coco import Annotations, Picture

SPLITS = ("train", "val")


def make_masks(folder: Path, n_labels: int, chunk: list[tuple[str, Picture]]) -> dict[str, str]:
    """Write the masks that are not there yet; the digest of each."""
    found = {}
    for image_id, picture in chunk:
        path = folder / f"{image_id}.png"
        if path.exists():
            label = images.read_label(path, n_labels, picture.size)
        else:
            label = coco.draw(picture, f"{picture.file} in the annotations")
            images.write_label(path, label)
        found[image_id] = coco.digest(label)
    return found


def look_at_images(folder: Path, chunk: list[Picture]) -> list[str]:
    """What is wrong with images, by their headers."""
    problems = []
    for picture in chunk:
        try:
            size = images.image_size(folder / picture.file)
            if size != picture.size:
                what = f"{size[0]}x{size[1]} pixels, by the annotations {picture.size}"
                problems.append(f"{folder / picture.file}: {what}")
        except InputError as error:
            problems.append(str(error))
    return problems


def place(source: Path, target: Path, how: str) -> None:
    """Put a link to `source`, or a copy, at `target`, unless it is there."""
    is_link, source = target.is_symlink(), source.resolve()
    if not is_link and target.resolve() == source:  # taken from where it is put
        return
    if how == "symlink" and is_link and os.readlink(target) == str(source):
        return
    if how == "hardlink" and not is_link and target.exists() and target.samefile(source):
        return
    if how == "copy" and not is_link and target.exists():
        there, wanted = target.stat(), source.stat()  # a copy that is there is a whole one
        if there.st_size == wanted.st_size and not os.path.samestat(there, wanted):
            return
    make = {"symlink": os.symlink, "hardlink": os.link, "copy": shutil.copyfile}[how]
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with files.naming(target):
            make(source, temporary)
            os.replace(temporary, target)
    except OSError as error:
        if how == "copy" or error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK):
            raise
        raise InputError(f"{target}: no {how} can be made here; give --link copy") from None
    finally:
        temporary.unlink(missing_ok=True)


def check_images(folder: Path, pictures: dict[str, Picture], jobs: int) -> None:
    """Refuse a folder where images are missing, unreadable or of another size."""
    there = set(os.listdir(folder)) if folder.is_dir() else set()
    missing = [p.file for p in pictures.values() if p.file not in there]
    problems = [f"{folder / name}: no such image" for name in missing]
    if not problems:
        look = functools.partial(look_at_images, folder)
        problems = list(chain(*over_chunks(look, list(pictures.values()), jobs, "images")))
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise InputError(f"{problems[0]}{more}; unpack the images again, or see --images")


def check_masks(
    folder: Path, pictures: dict[str, Picture], categories: dict[int, str], jobs: int
) -> tuple[dict[str, Path], dict[str, str]]:
    """Path and digest of the published masks of the pictures, after a look at their labels."""
    paths, category = coco.find_masks(folder, pictures), dict(enumerate(categories, 1))
    items, verdicts = [(i, path, pictures[i]) for i, path in paths.items()], {}
    look = functools.partial(coco.look_at_masks, category)
    for part in over_chunks(look, items, jobs, "published masks"):
        verdicts |= part
    coco.check_verdicts(verdicts, paths, categories)
    return paths, {i: digest for i, (digest, _, _) in verdicts.items()}


def start(out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The record in OUT of an earlier start with these settings; a new one where OUT is empty."""
    path = out / "coco.json"
    if not path.exists():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise InputError(f"{out}: not made by this tool; choose another --out")
        out.mkdir(parents=True, exist_ok=True)
        files.write_json(path, {"settings": settings, "masks": None})
    record = files.read_json(path, "choose another --out")
    found = record.get("settings") or {}
    for name, value in settings.items():
        if found.get(name) != value:
            change = f"{name} {found.get(name)} instead of {value}"
            raise InputError(f"{out} was made with {change}; choose another --out")
    return record


def prepare(
    args: argparse.Namespace, settings: dict[str, Any], splits: dict[str, Annotations]
) -> None:
    """Make the data root, once all is known to be sound, and print what it holds."""
    out, (train, val) = args.out, splits.values()
    if train.categories != val.categories:
        raise InputError(f"{args.annotations[1]}: other categories than {args.annotations[0]}")
    lists: dict[str, dict[str, Picture]] = {}
    folders = dict(zip(SPLITS, args.images, strict=True))
    for split, (_, pictures) in splits.items():
        lists[split] = {i: p for i, p in pictures.items() if p.objects or args.all_images}
        if not any(p.objects for p in pictures.values()):
            raise InputError(f"{args.annotations[SPLITS.index(split)]}: no objects; {coco.REMEDY}")
        check_images(folders[split], lists[split], args.jobs)
    if twice := sorted(lists["train"].keys() & lists["val"].keys()):
        raise InputError(f"{args.annotations[1]}: image {twice[0]!r} is one of train as well")
    masked, paths = lists["val"] | (lists["train"] if args.train_masks else {}), dict[str, Path]()
    digests: dict[str, str] = {}
    if args.masks is not None:
        paths, digests = check_masks(args.masks, masked, val.categories, args.jobs)
    record, names = start(out, settings), list(val.categories.values())
    files.write_text(out / "classes.txt", "".join(f"{name}\n" for name in names))
    for folder in ("ImageSets/Segmentation", "JPEGImages", "SegmentationClass"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    rows = []
    for split, pictures in lists.items():
        for image_id, picture in pictures.items():
            place(folders[split] / picture.file, out / "JPEGImages" / picture.file, args.link)
            rows.append("\t".join([image_id, *(names[n - 1] for n in sorted(picture.classes))]))
        path = out / "ImageSets" / "Segmentation" / f"{split}.txt"
        files.write_text(path, "".join(f"{image_id}\n" for image_id in pictures))
    files.write_text(out / "labels.txt", "".join(f"{row}\n" for row in rows))
    for image_id, path in paths.items():
        place(path, out / "SegmentationClass" / f"{image_id}.png", args.link)
    drawn = [(i, p) for i, p in masked.items() if i not in paths]  # all, or those without objects
    make = functools.partial(make_masks, out / "SegmentationClass", len(names) + 1)
    for part in over_chunks(make, drawn, args.jobs, "masks"):
        digests |= part
    whole = files.digest_text(f"{i} {digests[i]}" for i in sorted(digests))
    masks = {"rule": settings["masks"], "count": len(digests), "digest": whole}
    if record["masks"] not in (None, masks):
        what = "its masks are no longer those that it was made with"
        raise InputError(f"{out}: {what}; remove it and start again")
    counts = {split: len(pictures) for split, pictures in lists.items()}
    made = {"settings": settings, "categories": val.categories, "images": counts, "masks": masks}
    files.write_json(out / "coco.json", made)
    print(f"classes   {len(names)}")
    for split, (_, pictures) in splits.items():
        each = sum(len(p.classes) for p in lists[split].values()) / counts[split]
        empty = sum(not p.objects for p in pictures.values())
        words = f"{empty} without objects {'among them' if args.all_images else 'left out'}"
        print(f"{split:<10}{counts[split]} images, {each:.2f} classes each; {words}")
    print(f"masks     {masks['count']}; {masks['rule']}; digest {masks['digest']}")


def get_args_parser() -> argparse.ArgumentParser:
    p = options.Parser(__doc__)
    pair, words = ("TRAIN", "VAL"), "instances_*.json of train and of val"
    p.add_argument("--annotations", type=Path, nargs=2, required=True, metavar=pair, help=words)
    words = "folders of the images of train and of val"
    p.add_argument("--images", type=Path, nargs=2, required=True, metavar=pair, help=words)
    p.add_argument("--out", type=Path, required=True, help="data root to make")
    words = "list the images without objects too, as pictures with none of the classes"
    p.add_argument("--all-images", action="store_true", help=words)
    words = "folder of a published archive's masks, index PNGs of the classes; else they are drawn"
    p.add_argument("--masks", type=Path, metavar="FOLDER", help=words)
    p.add_argument("--train-masks", action="store_true", help="masks of train as well as of val")
    words, how = "how images and published masks get there", ("symlink", "hardlink", "copy")
    p.add_argument("--link", choices=how, default="symlink", help=words)
    words = "processes; 0: one per CPU core"
    p.add_argument("--jobs", type=options.integer(0, 256), default=0, help=words)
    return p


def main() -> None:
    args = get_args_parser().parse_args()
    if args.masks is None:
        coco.coder()
    elif not args.masks.is_dir():
        raise InputError(f"{args.masks}: no such directory; unpack the archive of the masks")
    names = "all_images", "train_masks"
    settings: dict[str, Any] = {name: getattr(args, name) for name in names}
    settings["annotations"] = [files.digest_file(path) for path in args.annotations]
    settings["masks"] = (
        coco.RULE if args.masks is None else f"published: {args.masks.resolve().name}"
    )
    drawn = [args.masks is None and args.train_masks, args.masks is None]
    found = [coco.read_annotations(*each) for each in zip(args.annotations, drawn, strict=True)]
    prepare(args, settings, dict(zip(SPLITS, found, strict=True)))


if __name__ == "__main__":
    run_main(main, get_args_parser)
