#!/usr/bin/env python
"""Choose the background score by eye: photographs under their masks, and a slider.

    python tools/explore.py runs/my --data my --out runs/my/explore
    python tools/explore.py runs/my/rw some/other/scores --data my --split train --out explore

Writes OUT/index.html, page2.html ...: self-contained pages of --images pictures each, which a
browser opens from the disk. The masks are those of make_pseudo_labels.py --no-crf, pixel by pixel,
at every background score from 0 to 1 by 0.01. Beside them stand the share of the pixels that are
not background, the label-free value of `--threshold auto`, and the command to paste. No ground
truth is read. A run folder gives its CAMs, walked scores and pseudo-labels; 0.1 s an image each.
"""

import argparse
import io
import re
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # `core` from any directory
from core import files, recipe, steps
from core.data import images, scoring
from core.data.datasets import DataRoot
from core.data.scores import Scores, otsu
from core.errors import InputError
from core.progress import Bar
from core.run import artefacts, options
from core.run.main import run_main
from tools.reporting.charts import data_uri
from tools.reporting.gallery import spread
from tools.reporting.templating import page

import numpy as np
from PIL import Image

LEVELS = np.arange(101) / 100  # the slider's background scores
MARK = "<title>Background score</title>"  # of this tool's pages
ALWAYS = len(LEVELS)  # of a label map's pixels: above all of them


def get_args_parser() -> options.Parser:
    p = options.Parser(__doc__)
    p.add_argument("folders", type=Path, nargs="+", help="a run folder, or scores and label maps")
    p.add_argument("--data", type=Path, help="data root; else that of the first folder's run")
    p.add_argument("--split", help="list of images; else that of the first folder's run")
    p.add_argument("--out", type=Path, required=True, help="directory of the pages")
    words = "pictures on a page: about 100 KB each and column"
    p.add_argument("--images", type=options.integer(1, 500), default=24, help=words)
    words = "longer side of the pictures on the pages; shares are of all pixels"
    p.add_argument("--side", type=options.side, default=640, help=words)
    words = "of the list, evenly spread; 0: all"
    p.add_argument("--sample", type=options.count, default=0, help=words)
    return p


@dataclass
class Column:
    """A directory beside others.

    Attributes:
        holds: "scores" or "labels". pixels: counts by the number of levels below their score.
        autos: Otsu's threshold of each image.
    """

    folder: Path
    title: str
    holds: str
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(len(LEVELS) + 1, np.int64))
    autos: list[float] = field(default_factory=list)

    def layers(self, image_id: str, data: DataRoot, size: tuple[int, int]) -> np.ndarray:
        """uint8 (H, W, 3): the class of each pixel, the levels below its score, 0; counted too.

        A pixel is its class at the levels below its score, else background. Raises InputError for
        a file that is missing, damaged or of another size.
        """
        if self.holds == "labels":
            label = images.read_label(self.folder / f"{image_id}.png", data.n_labels, size)
            below = np.where(label > 0, ALWAYS, 0)
        else:
            file = Scores.load(self.folder / f"{image_id}.npz", len(data.classes), size)
            best, label = scoring.best_class(file)
            below = np.searchsorted(LEVELS.astype(np.float32), best.ravel()).reshape(size)
            if len(file.classes):
                self.autos.append(otsu(best))
        self.pixels += np.bincount(below.ravel(), minlength=len(self.pixels))
        return np.stack([label, below, np.zeros(size)], 2).astype(np.uint8)

    def facts(self, data: Path, split: str) -> dict[str, Any]:
        """What the page says of it: shares of pixels by level, `auto`, the command to complete."""
        above = self.pixels[::-1].cumsum()[::-1][1:] / max(1, self.pixels.sum())
        command = ["python", "make_pseudo_labels.py", "--data", data, "--split", split]
        command += ["--scores", self.folder, "--threshold"]
        return {
            "title": self.title,
            "holds": self.holds,
            "shares": np.round(above, 4).tolist(),
            "auto": round(float(np.mean(self.autos)), 2) if self.autos else None,
            "command": shlex.join(map(str, command)),
            "out": shlex.quote(str(self.folder.parent / f"pseudo_{self.folder.name}_")),
        }


def find(folders: list[Path]) -> list[Column]:
    """The columns of run folders, in the pipeline's order, and of other directories."""
    columns = []
    for folder in folders:
        inside = [
            Column(folder / step.name, step.title, step.holds)
            for step in steps.STEPS
            if step.title and step.split == "train" and (folder / step.name / "run.json").exists()
        ]
        if not inside:
            holds = files.read_json(folder / "run.json", "give a run folder").get("holds")
            if holds not in ("scores", "labels"):
                raise InputError(
                    f"{folder}: holds {holds}; give scores, label maps or a run folder"
                )
            inside = [Column(folder, folder.name, holds)]
        columns += inside
    if not any(column.holds == "scores" for column in columns):
        raise InputError(f"{folders[0]}: no scores; give a directory that make_cam.py made")
    return columns


def check_out(out: Path) -> None:
    """Refuse a directory of others' files, which the pages would replace."""
    if out.is_dir() and any(out.iterdir()) and not is_own(out / "index.html"):
        raise InputError(f"{out}: holds other files than this tool's; choose another --out")


def is_own(path: Path) -> bool:
    """Whether a file is a page of this tool."""
    return path.is_file() and MARK in path.read_text("utf-8", "replace")[:1000]


def uri(pixels: np.ndarray, kind: str, **how: Any) -> str:
    """A picture as a data URI."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **how)
    return data_uri(f"image/{kind.lower()}", buffer.getvalue())


def complete(args: argparse.Namespace, columns: list[Column]) -> tuple[DataRoot, list[str]]:
    """The data and the images, given or those that the first directory was made of."""
    record = files.read_json(columns[0].folder / "run.json", "make it again")
    told = artefacts.mapping(record, "arguments")
    args.data, args.split = args.data or told.get("data"), args.split or told.get("split")
    if not args.data or not args.split:
        raise InputError(f"{columns[0].folder}: does not say of which images; give --data, --split")
    data = DataRoot(Path(args.data))
    if not data.background:
        raise InputError(f"{args.data}: has no background, hence no background score to choose")
    ids = data.ids(args.split)
    for column in columns:
        artefacts.read(column.folder, column.holds, data.classes, ids)
    if args.sample:
        ids = spread(ids, args.sample)
    return data, list(dict.fromkeys(ids))


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser().parse_args(argv)
    columns = find(args.folders)
    data, ids = complete(args, columns)
    check_out(args.out)
    args.out.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(ids), args.images)
    names = ["index.html", *(f"page{n}.html" for n in range(2, len(starts) + 1))]
    # Twice over the images: what a page says of all of them stands in the first page too.
    for image_id in Bar(ids, "explore", unit="image"):
        size = images.image_size(data.image_path(image_id))
        for column in columns:
            column.layers(image_id, data, size)
    facts = [column.facts(args.data, args.split) for column in columns]
    content = {
        "columns": facts,
        "names": names,
        "classes": data.classes,
        "default": recipe.PSEUDO_LABELS.threshold,
        "total": len(ids),
    }
    for start, name in zip(Bar(starts, "explore", unit="page"), names, strict=True):
        entries = []
        for image_id in ids[start : start + args.images]:
            photo = images.as_array(images.read_image(data.image_path(image_id)))
            layers = [column.layers(image_id, data, photo.shape[:2]) for column in columns]
            photo = images.fit(photo, args.side)
            layers = [images.fit(each, args.side, nearest=True) for each in layers]
            found = {*np.concatenate([each[..., 0].ravel() for each in layers])}
            entries.append({
                "id": image_id,
                "photo": uri(photo, "JPEG", quality=85),
                "layers": [uri(each, "PNG") for each in layers],
                "classes": sorted(found - {0, images.IGNORE}),
                "size": photo.shape[:2],
            })  # fmt: skip
        files.write_text(
            args.out / name, page("explore.html", this=name, entries=entries, **content)
        )
    for old in args.out.glob("page*.html"):  # of more images, earlier
        if old.name not in names and re.fullmatch(r"page\d+\.html", old.name) and is_own(old):
            old.unlink()
    print(f"{args.out / 'index.html'}: {len(ids)} images on {len(names)} pages")


if __name__ == "__main__":
    run_main(main, get_args_parser)
