#!/usr/bin/env python
"""Pack predicted label maps into the archive that the PASCAL VOC evaluation server takes.

    python predict.py --data VOCdevkit/VOC2012 --split test --out runs/voc/test \\
        --checkpoint runs/voc/segmentation/model.pt
    python tools/export_voc.py --predictions runs/voc/test --data VOCdevkit/VOC2012 \\
        --out runs/voc/comp6_test.tar.gz

Refused unless the folder has exactly the images of the split (1,456 for test), each of the size of
its image (checked where --data is given) with labels 0..20 and no 255. Every map is written with
the VOC palette, whatever it had. The same label maps give the same bytes. Under a minute.
"""

import argparse
import contextlib
import gzip
import io
import sys
import tarfile
import zlib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `core` from any directory
from core import files
from core.data import images
from core.data.datasets import VOC_CLASSES, DataRoot
from core.errors import InputError
from core.progress import Bar
from core.run import options
from core.run.main import run_main
from tools import prepare_voc

import numpy as np
from PIL import Image

INSIDE = "results/VOC2012/Segmentation/comp6_"  # how the server's paths begin


def check_out(path: Path) -> None:
    """Refuse to replace a file that is no such archive."""
    damaged = (OSError, EOFError, zlib.error, tarfile.TarError)
    first = None
    with contextlib.suppress(*damaged), tarfile.open(path) as archive:
        first = archive.next()
    if path.exists() and (first is None or not first.name.startswith(INSIDE)):
        raise InputError(f"{path}: is there already, and none of this tool's; choose another --out")


def split_ids(split: str, data: DataRoot | None) -> list[str]:
    """The ids the server expects: the published list of the split, else the data root's."""
    path = prepare_voc.LISTS / f"{split}.txt"
    if data is None or path.exists():
        return files.read_text(path, "give --data with a list of that name").split()
    return data.ids(split)


def check_ids(folder: Path, ids: list[str], split: str) -> None:
    """Refuse a folder that lacks predictions, has others, or whose run has not finished."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such directory; predict.py makes it")
    record = folder / "run.json"
    if record.exists() and files.read_json(record, "predict again").get("finished") is not True:
        raise InputError(f"{folder}: predict.py has not finished there; start it again")
    found = {path.stem for path in folder.glob("*.png")}
    missing, others = sorted(set(ids) - found), sorted(found - set(ids))
    if missing:
        some = f"{len(missing)} of the {len(ids)} label maps of {split!r} ({missing[0]} ...)"
        raise InputError(f"{folder}: lacks {some}; predict the whole split with predict.py")
    if others:
        some = f"{len(others)} label maps that are not of {split!r} ({others[0]} ...)"
        raise InputError(f"{folder}: holds {some}; give the folder of that split alone")


def write_archive(args: argparse.Namespace, ids: list[str], data: DataRoot | None) -> None:
    """Write the .tar.gz, all of it or nothing; names, times and owners are constants."""
    inside = f"{INSIDE}{args.split}_cls"
    with (
        files.atomic_path(args.out) as temporary,
        open(temporary, "wb") as file,
        gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for image_id in Bar(sorted(ids), desc="export", unit="image"):
            path = args.predictions / f"{image_id}.png"
            size = images.image_size(data.image_path(image_id)) if data is not None else None
            label = images.read_label(path, len(VOC_CLASSES) + 1, size)
            if np.any(label == images.IGNORE):
                raise InputError(f"{path}: holds 255 (ignore); the server wants a class everywhere")
            image, png = Image.fromarray(label, mode="L"), io.BytesIO()
            image.putpalette(images.voc_palette())
            image.save(png, format="PNG")
            entry = tarfile.TarInfo(f"{inside}/{path.name}")
            entry.size = png.tell()
            png.seek(0)
            archive.addfile(entry, png)


def get_args_parser() -> options.Parser:
    p = options.Parser(__doc__)
    p.add_argument("--predictions", type=Path, required=True, help="folder of <id>.png")
    p.add_argument("--out", type=Path, required=True, help="archive, .tar.gz or .tgz")
    p.add_argument("--data", type=Path, help="data root with the images, to compare sizes")
    p.add_argument("--split", default="test", help="its published list says which ids there are")
    return p


def main() -> None:
    args = get_args_parser().parse_args()
    if not args.out.name.endswith((".tar.gz", ".tgz")):
        raise InputError(f"{args.out}: the server takes .tar.gz or .tgz; rename --out")
    check_out(args.out)
    data = DataRoot(args.data) if args.data is not None else None
    ids = split_ids(args.split, data)
    check_ids(args.predictions, ids, args.split)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_archive(args, ids, data)
    print(f"{args.out}: {len(ids)} label maps, {args.out.stat().st_size / 2**20:.1f} MiB")
    if data is None:
        print("sizes were not compared with the images; --data does that")


if __name__ == "__main__":
    run_main(main, get_args_parser)
