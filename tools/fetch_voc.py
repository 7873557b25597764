#!/usr/bin/env python
"""Get VOC 2012 in whatever form there is, or download it; then tools/prepare_voc.py checks it.

    python tools/fetch_voc.py --voc VOCdevkit/VOC2012 --download --sbd

A devkit is looked for at --voc and around it, however deep it was unpacked (`VOCdevkit/VOCdevkit`,
Kaggle's `VOC2012_train_val/VOC2012_train_val`), then the published tar; --download (2 GB, and
1.4 GB for --sbd) gets that from where torchvision does, checked by its MD5 and gone on with where
it was cut. Without SBD and masks for train_aug the method works all the same: what is wrong with
those is said, and stops nothing.
"""

import contextlib
import os
import shutil
import sys
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `core` from any directory
from core.data.datasets import FOLDERS, DataRoot
from core.errors import InputError
from core.files import checksum, naming
from core.run import options
from core.run.main import run_main
from tools import prepare_voc, voc_forms
from tools.download import download

from torchvision.datasets import SBDataset
from torchvision.datasets.voc import DATASET_YEAR_DICT

DEPTH = 4  # folders below the one searched
FULL = {*FOLDERS, "SegmentationClassAug", "SegmentationObject", "cls", "img", "inst"}
VOC, SBD = "VOC 2012", "SBD"


class Archive(NamedTuple):
    """A published file: `marker` is the folder in it that what is wanted lies beside."""

    name: str
    url: str
    md5: str
    marker: str


_VOC = DATASET_YEAR_DICT["2012"]
ARCHIVES = {
    VOC: Archive(_VOC["filename"], _VOC["url"], _VOC["md5"], "JPEGImages"),
    SBD: Archive(SBDataset.filename, SBDataset.url, SBDataset.md5, "cls"),
}


def folders(top: Path, depth: int = DEPTH) -> Iterator[Path]:
    """`top` and the folders below it, without hidden ones and those full of files."""
    yield top
    inside: list[Path] = []
    with contextlib.suppress(OSError):
        inside = sorted(p for p in top.iterdir() if p.name[0] != "." and p.name not in FULL)
    for folder in inside if depth else ():
        if folder.is_dir():
            yield from folders(folder, depth - 1)


def find_devkit(voc: Path) -> Path | None:
    """The folder with most of the published pictures: at `voc`, below or beside it."""
    published = set((prepare_voc.LISTS / "train_aug.txt").read_text().split())
    published |= set((prepare_voc.LISTS / "val.txt").read_text().split())
    near = voc.absolute().parent  # such as VOCdevkit; what is named after VOC beside it as well
    beside = sorted(near.parent.glob("VOC*")) if near.name.startswith("VOC") else []
    for places in ([voc], [near] if near.name.startswith("VOC") else near.glob("VOC*"), beside):
        counts = {}
        for folder in (each for place in places for each in folders(place)):
            if (folder / "JPEGImages").is_dir():
                names = {Path(name).stem for name in os.listdir(folder / "JPEGImages")}
                counts[folder] = len(names & published)
        best = max(counts, key=lambda folder: counts[folder], default=None)
        if best is not None and counts[best]:
            return best
    return None


def find_sbd(folder: Path) -> Path | None:
    """SBD's folder with cls/*.mat: `folder`, one below it, or one around a `dataset`."""
    above = folders(folder.parent, 3) if folder.name == "dataset" else ()
    for each in (*folders(folder, 3), *above):
        if next((each / "cls").glob("*.mat"), None) is not None:
            return each
    return None


def get_archive(what: str, args, places: list[Path]) -> Path | None:
    """The archive, one that is there or, with --download, a fresh one."""
    archive = ARCHIVES[what]
    for path in (place / archive.name for place in places):
        if path.is_file():
            found = checksum(path, "md5")
            if found != archive.md5:
                how = f"delete it, or, if it is the beginning of one, rename it to {path.name}.part"
                what = f"MD5 {found}, not {archive.md5}: damaged, cut short or another file"
                raise InputError(f"{path}: {what}; {how} and --download goes on from there")
            return path
    if not args.download:
        return None
    sources = [archive.url]
    if args.mirror:
        base = args.mirror.rstrip("/")
        sources.insert(0, base if base.endswith(archive.name) else f"{base}/{archive.name}")
    download(sources, places[0] / archive.name, archive.md5)
    return places[0] / archive.name


def unpack(what: str, path: Path, target: Path) -> Path:
    """Unpack an archive beside `target` and give it that name when it is whole."""
    marker, only = ARCHIVES[what].marker, "/cls/" if what == SBD else ""
    if target.is_dir() and any(target.iterdir()):
        raise InputError(f"{target}: holds something else; move it, or choose another folder")
    partial = target.absolute().with_name(f".{target.name}.unpacking")
    shutil.rmtree(partial, ignore_errors=True)
    print(f"unpacking {path} to {target}")
    safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    try:
        with naming(partial), tarfile.open(path) as tar:
            members = (m for m in tar if only in m.name)  # of SBD the class masks alone
            tar.extractall(partial, members=members, **safe)
        found = next((f for f in folders(partial) if (f / marker).is_dir()), None)
        if found is None:
            raise InputError(f"{path}: there is no {marker} in it; get another")
        with naming(target):
            if target.is_symlink() or target.is_dir():  # empty, or a link to nothing
                target.unlink() if target.is_symlink() else target.rmdir()
            found.rename(target)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: damaged ({error}); delete it and get it again") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def get_voc(args, places: list[Path]) -> Path:
    """The data root: the devkit that is there, one out of parquet files or out of the tar."""
    if args.parquet is not None:
        voc_forms.read_parquet(args.parquet, args.voc)
        return args.voc
    root = find_devkit(args.voc)
    if root is None:
        path = get_archive(VOC, args, places)
        if path is None:
            what = f"no VOC 2012 there or around it, nor {ARCHIVES[VOC].name}"
            raise InputError(f"{args.voc}: {what}; --download gets it, or unpack the tar there")
        return unpack(VOC, path, args.voc)
    if root.resolve() != args.voc.resolve():
        if not args.voc.exists() and not args.voc.is_symlink():
            with contextlib.suppress(OSError):  # a name that scripts/settings.sh knows
                args.voc.parent.mkdir(parents=True, exist_ok=True)
                args.voc.symlink_to(os.path.relpath(root, args.voc.absolute().parent))
                print(f"{args.voc}: now a link to {root}")
                return args.voc
        print(f"found {root}: give the scripts DATA={root}")
    return root


def get_sbd(args, places: list[Path]) -> Path | None:
    """SBD's folder, where it is wanted or there."""
    found = find_sbd(args.sbd_folder)
    if found is None and args.sbd:
        path = get_archive(SBD, args, places)
        if path is None:
            where = f"no cls/*.mat there, nor {ARCHIVES[SBD].name}"
            raise InputError(f"{args.sbd_folder}: {where}; --download gets it")
        found = unpack(SBD, path, args.sbd_folder)
    return found


def get_args_parser() -> options.Parser:
    p = options.Parser(__doc__)
    words = "where VOC 2012 is or shall be"
    p.add_argument("--voc", type=Path, default=Path("VOCdevkit/VOC2012"), help=words)
    p.add_argument("--download", action="store_true", help="get what is not there")
    p.add_argument("--sbd", action="store_true", help="SBD's masks as well; optional")
    words = "where SBD is or shall be, with or without dataset/"
    p.add_argument("--sbd-folder", type=Path, default=Path("benchmark_RELEASE"), help=words)
    p.add_argument("--mirror", default="", metavar="URL", help="the archives' folder, tried first")
    words = "where the archives are or come; else beside --voc"
    p.add_argument("--archives", type=Path, metavar="DIR", help=words)
    words = "SegmentationClassAug as a zip or a folder, of indices or VOC's colours"
    p.add_argument("--aug", type=Path, metavar="PATH", help=words)
    words = "Hugging Face's form: a file or folder of id, image, mask; becomes the devkit at --voc"
    p.add_argument("--parquet", type=Path, metavar="PATH", help=words)
    p.add_argument("--jobs", type=options.integer(0, 256), default=0, help="0: one per CPU core")
    return p


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser().parse_args(argv)
    near = [args.voc.parent, args.voc.parent.parent, Path()]
    places = near if args.archives is None else [args.archives, *near]
    root, left_out = get_voc(args, places), []
    command = ["--voc", str(root), "--jobs", str(args.jobs)]
    try:
        sbd = get_sbd(args, places)
        if sbd is not None:
            prepare_voc.check_sbd(sbd)
            command += ["--sbd", str(sbd)]
    except (InputError, OSError) as error:
        left_out.append(f"SBD: {error}")
    if args.aug is not None:
        try:
            left_out += voc_forms.read_masks(args.aug, DataRoot(root))
        except (InputError, OSError) as error:
            left_out.append(f"--aug: {error}")
    try:
        prepare_voc.main(command)
    finally:
        for words in left_out:
            print(f"left out (optional): {words}", file=sys.stderr)


if __name__ == "__main__":
    run_main(main, get_args_parser)
