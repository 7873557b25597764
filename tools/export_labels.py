#!/usr/bin/env python
"""Give label maps to annotation tools: as COCO JSON, labelme, CVAT or Label Studio pre-annotations.

    python tools/export_labels.py runs/my/pseudo --data my --form labelme --out my_labelme

| form | --out | what |
|---|---|---|
| coco | a .json | an annotation for each class of a picture, as polygons |
| coco-rle | a .json | the same as run lengths, to the pixel (uncompressed: `counts` is a list) |
| labelme | a folder | `<id>.json`, a polygon for each part of a class |
| cvat | an .xml | "CVAT for images 1.1", a polygon for each part |
| labelstudio | a .json | tasks with predictions, a polygon for each part |

Polygons may be off by --tolerance pixels; with 0 they are exact, of many points. Pixels of no
label (255) are not in them. The classes are run.json's, else those of --data. Without --data or
--pictures the pictures are taken to be called `<id>.jpg`.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `core` from any directory
from core import files
from core.data import images
from core.data.datasets import DataRoot, check_name
from core.errors import InputError
from core.progress import Bar
from core.run import artefacts, options
from core.run.main import run_main
from tools.annotations import WRITERS, Picture, labelme


def get_args_parser() -> options.Parser:
    p = options.Parser(__doc__)
    p.add_argument("labels", type=Path, help="directory of label maps, <id>.png")
    p.add_argument("--form", choices=(*WRITERS, "labelme"), required=True, help="see above")
    p.add_argument("--out", type=Path, required=True, help="new file, of labelme new folder")
    p.add_argument("--data", type=Path, help="data root of the pictures and classes")
    p.add_argument("--pictures", type=Path, help="folder of the pictures, where they are elsewhere")
    words = "pixels that polygons may be off; 0: exact"
    p.add_argument("--tolerance", type=options.number(0, 100), default=1.0, help=words)
    words = "what Label Studio has before a picture's name, as /data/local-files/?d=my/"
    p.add_argument("--prefix", default="", help=words)
    return p


def find_labels(folder: Path, data: DataRoot | None) -> tuple[list[str], list[str]]:
    """The ids of the label maps, in order, and the class names."""
    if (folder / "run.json").exists():
        made = artefacts.read(folder, "labels", data.classes if data is not None else None)
        names = [Path(name) for name in artefacts.read_sums(folder)]
        return [path.stem for path in names if path.suffix == ".png"], made["classes"]
    if not folder.is_dir():
        raise InputError(f"{folder}: no such directory; give a directory of label maps")
    ids = sorted(path.stem for path in folder.glob("*.png"))
    if not ids:
        raise InputError(f"{folder}: holds no <id>.png; give a directory of label maps")
    if data is None:
        raise InputError(f"{folder}: without a run.json nothing names the classes; give --data")
    return [check_name(i, folder, "id") for i in ids], data.classes


def find_pictures(folder: Path | None, ids: list[str], data: DataRoot | None) -> dict[str, Path]:
    """Id -> its picture, in --pictures or --data; empty without either."""
    if folder is None:
        return {i: data.image_path(i) for i in ids} if data is not None else {}
    if not folder.is_dir():
        raise InputError(f"{folder}: no such directory; give that of the pictures")
    found: dict[str, list[Path]] = {}
    for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in images.ENDINGS):
        found.setdefault(path.stem, []).append(path)
    if missing := [i for i in ids if i not in found]:
        raise InputError(f"{folder / missing[0]}.jpg: no such picture; its label map is there")
    if twice := [found[i] for i in ids if len(found[i]) > 1]:
        raise InputError(f"{twice[0][1]}: {twice[0][0].name} has the same id; move one away")
    return {i: found[i][0] for i in ids}


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser().parse_args(argv)
    empty = args.form == "labelme" and args.out.is_dir() and not any(args.out.iterdir())
    if args.out.exists() and not empty:
        raise InputError(f"{args.out}: is there already; choose another name, or delete it")
    data = DataRoot(args.data) if args.data is not None else None
    ids, classes = find_labels(args.labels, data)
    paths = find_pictures(args.pictures, ids, data)
    if not paths:
        words = "pictures not given: they are named <id>.jpg; else give --pictures"
        print(f"note: {words}", file=sys.stderr)

    def pictures() -> Iterator[Picture]:
        for image_id in Bar(ids, "export_labels", unit="image"):
            path = paths.get(image_id)
            size = images.image_size(path) if path is not None else None
            label = images.read_label(args.labels / f"{image_id}.png", len(classes) + 1, size)
            yield Picture(image_id, path, label)

    if args.form == "labelme":
        with files.new_folder(args.out) as folder:
            for picture in pictures():
                text = labelme(picture, classes, args.tolerance, args.out)
                files.write_text(folder / f"{picture.id}.json", text)
    else:
        writer = WRITERS[args.form](classes, args)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        for picture in pictures():
            writer.add(picture)
        files.write_text(args.out, writer.text())
    print(f"{args.out}: {len(ids)} label maps")


if __name__ == "__main__":
    run_main(main, get_args_parser)
