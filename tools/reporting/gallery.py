"""Which images are shown: best, median and worst ones in the page, some in overview.png."""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image
from tqdm import tqdm

import predict
from core import files
from core.data import images, visual
from tools import steps
from tools.reporting.charts import STYLE, data_uri
from tools.reporting.collect import Family, noting
from tools.reporting.pictures import Album, Cell, Column

SECTIONS = ("best", "median", "worst")
WIDTH, DPI = 6, 100  # columns that short rows fill together; pixels an inch
Place = tuple[str, str, Cell | None]  # title, caption, picture


@dataclass
class Entry:
    """One image: its section, tags ("best 93", "worst dog 12" ...), classes and pictures."""

    image_id: str
    section: str
    is_overall: bool
    classes: list[int]
    tags: list[str] = field(default_factory=list)
    cells: list[tuple[str, str, float | None]] = field(default_factory=list)  # title, URI, IoU


def galleries(
    albums: list[Album], args: argparse.Namespace, warnings: list[str]
) -> list[dict[str, Any]]:
    """The galleries of the albums that have pictures, as page.html shows them."""
    found = []
    for album in albums if args.images or args.per_class else []:
        with noting(warnings, "gallery: "):
            ids = album.data.ids(album.split)
            columns = [c for c in album.columns if any(c.path(i).is_file() for i in ids)]
            if columns:
                found.append(gallery(album, ids, columns[-1], args, warnings))
    return found


def gallery(
    album: Album, ids: list[str], ranked: Column, args: argparse.Namespace, warnings: list[str]
) -> dict[str, Any]:
    """The gallery of an album, ordered by a column's IoU.

    Returns:
        split; order: what it is ordered by; entries; widest: the most pictures of an image;
        classes: number -> name and colour of those in the images.
    """
    ious, means = {}, {}
    for image_id in tqdm(ids, desc=f"gallery {album.split}", unit="image", dynamic_ncols=True):
        with noting(warnings, "gallery: "):
            truth = album.truth(image_id)
            label = None if truth is None else album.label(ranked, image_id, truth.shape)[0]
            if label is not None:
                matrix = album.confusion(label, truth)
                present = np.flatnonzero(matrix.matrix.sum(1)[1:]) + 1
                ious[image_id] = dict(zip(present.tolist(), matrix.iou()[present], strict=True))
                means[image_id] = matrix.miou()
    means = {image_id: value for image_id, value in means.items() if np.isfinite(value)}
    chosen = choose(means, ious, album.data.classes, args)
    if not means:
        some = [i for i in ids if ranked.path(i).is_file()]
        chosen = {i: Entry(i, "sample", True, []) for i in spread(some, 3 * args.images)}
    for image_id, strip in album.strips(chosen, warnings, "gallery"):
        entry = chosen[image_id]
        for title, cell in strip.items():
            entry.cells.append((title, jpeg_uri(images.fit(cell.picture, args.side)), cell.iou))
        if not means:
            entry.classes = [c for c in np.unique(cell.label).tolist() if 0 < c < 255]
    entries = [entry for entry in chosen.values() if entry.cells]
    order = f"{len(means)} images, ordered by the IoU of {ranked.title}"
    return {
        "split": album.split,
        "order": order if means else "a sample; there is no ground truth",
        "entries": entries,
        "widest": max((len(entry.cells) for entry in entries), default=0),
        "classes": {
            c: (album.data.classes[c - 1], f"rgb{tuple(visual.PALETTE[c].tolist())}")
            for c in sorted({c for entry in entries for c in entry.classes})
        },
    }


def places(n: int, count: int) -> dict[str, range]:
    """Positions of the best, median and worst of n images in falling order; none twice."""
    best = range(min(count, n))
    worst = range(max(len(best), n - count), n)
    middle = range(len(best), worst.start)
    start = middle.start + max(0, (len(middle) - count + 1) // 2)
    return {"best": best, "median": range(start, min(start + count, middle.stop)), "worst": worst}


def choose(
    means: dict[str, float],
    ious: dict[str, dict[int, float]],
    classes: list[str],
    args: argparse.Namespace,
) -> dict[str, Entry]:
    """The best, median and worst images by mIoU, then by the IoU of each class in them."""
    chosen: dict[str, Entry] = {}
    rankings = [("", args.images, means)]
    for index, name in enumerate(classes, 1):
        score = {i: ious[i][index] for i in means if index in ious[i]}
        rankings.append((f" {name}", args.per_class, score))
    for suffix, number, score in rankings:
        order = sorted(score, key=lambda i: (-score[i], i))
        for section, positions in places(len(order), number).items():
            for image_id in (order[position] for position in positions):
                new = Entry(image_id, section, not suffix, sorted(ious[image_id]))
                entry = chosen.setdefault(image_id, new)
                entry.tags.append(f"{section}{suffix} {score[image_id]:.0f}")
    ordered = sorted(chosen, key=lambda i: (SECTIONS.index(chosen[i].section), -means[i]))
    return {image_id: chosen[image_id] for image_id in ordered}


def spread(ids: list[str], count: int) -> list[str]:
    """`count` of the ids, evenly spread."""
    places = np.linspace(0, len(ids), min(count, len(ids)), endpoint=False)
    return [ids[int(place)] for place in places]


def jpeg_uri(picture: np.ndarray) -> str:
    """A uint8 RGB picture (H, W, 3) as a data URI."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=78)
    return data_uri("image/jpeg", buffer.getvalue())


def overview(
    family: Family, albums: list[Album], args: argparse.Namespace, warnings: list[str], path: Path
) -> None:
    """Draw images of a family's albums, a PNG; short rows stand two or more abreast.

    A picture shows every step: what the segmentation was not asked for, the device does now.
    """
    lines: list[list[Place]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for album in albums:
            with noting(warnings, "overview: "):
                abreast = max(1, WIDTH // len(album.titles))
                listed = album.data.ids(album.split)
                ids = [i for i in args.ids if i in listed]
                ids = ids or spread(listed, -(-args.overview // abreast) * abreast)
                with noting(warnings, "overview: "):
                    folder = Path(temporary, str(len(lines)))
                    album.columns += segmented(family, album, ids, args.device, folder)
                strips = dict(album.strips(ids, warnings, "overview"))
                lines += arrange(album.titles, strips, abreast)
    if lines:
        draw(lines, albums[0].data.classes, args.side, path)


def segmented(
    family: Family, album: Album, ids: list[str], device: str, folder: Path
) -> list[Column]:
    """Columns of the segmentations that were made of another split: made now, as they were.

    Raises:
        InputError: a damaged model or image.
    """
    have = {column.step.name for column in album.columns}
    paths = [album.data.image_path(image_id) for image_id in ids]
    made = []
    for step in (s for s in steps.STEPS if s.script == "predict" and s.name not in have):
        name, out = dict(step.reads)["--checkpoint"], folder / step.name
        models = {p.path / name / "model.pt": p for row in family.rows for p in row.seeds}
        for model in [path for path in models if path.is_file()][:1]:
            record = models[model].records.get(step.name)
            settings = record["settings"] if record else {}
            command = [*paths, "--out", out, "--checkpoint", model, "--device", device, "--jobs", 1]
            command += ["--scales", *settings["scales"]] if settings.get("scales") else []
            command += [] if settings.get("crf", True) else ["--no-crf"]
            with contextlib.redirect_stdout(io.StringIO()):
                predict.main([str(each) for each in command])
            made.append(Column(step.title, step, out, 0.0))
    return made


def arrange(
    titles: list[str], strips: dict[str, dict[str, Cell]], abreast: int
) -> list[list[Place]]:
    """Lines of places, `abreast` images in each; titles stand in the first line."""
    shown = [title for title in titles if any(title in strip for strip in strips.values())]
    lines: list[list[Place]] = []
    for number, (image_id, strip) in enumerate(strips.items()):
        if number % abreast == 0:
            lines.append([])
        for title in shown:
            cell = strip.get(title)
            caption = image_id if title == "image" else ""
            if cell is not None and cell.iou is not None:
                caption = f"IoU {cell.iou:.0f}"
            lines[-1].append((title if len(lines) == 1 else "", caption, cell))
    return lines


def draw(lines: list[list[Place]], names: list[str], side: int, path: Path) -> None:
    """Write lines of pictures, each `side` pixels, and the colours of the classes in them."""
    width, height = max(map(len, lines)) * side, len(lines) * (side + 22) + 50
    with matplotlib.rc_context(STYLE):
        figure = Figure((width / DPI, height / DPI), DPI, layout="constrained")
        plain = {"xticks": [], "yticks": [], "frame_on": False}
        grid = figure.subplots(len(lines), width // side, squeeze=False, subplot_kw=plain)
        labels: set[int] = set()
        for line, axes in zip(lines, grid, strict=True):
            for (title, caption, cell), each in zip(line, axes, strict=False):
                each.set_title(title, fontsize=9)
                each.set_xlabel(caption, fontsize=8)
                if cell is not None:
                    each.imshow(cell.picture)
                    labels |= set() if cell.label is None else set(np.unique(cell.label).tolist())
        colours = [
            Patch(color=visual.PALETTE[c] / 255, label=names[c - 1])
            for c in sorted(labels)
            if 0 < c <= len(names)
        ]
        if colours:
            figure.legend(handles=colours, loc="outside lower center", ncols=WIDTH, frameon=False)
        with files.atomic_path(path) as temporary:
            figure.savefig(temporary, format="png")
