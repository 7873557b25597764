"""Which images are shown: best, median and worst ones in the page, some in overview.png."""

import contextlib
import io
import tempfile
import textwrap
from argparse import Namespace
from pathlib import Path

import predict
from core import files, steps
from core.data import images, visual
from core.progress import Bar
from tools.reporting.charts import data_uri, style
from tools.reporting.collect import Family, noting
from tools.reporting.pictures import Album, Cell, Column, Strip

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

SECTIONS = ("best", "median", "worst")
WIDTH, DPI = 6, 100  # columns that short rows fill together; pixels an inch
LETTERS = 22  # pixels of a line of text over or under pictures
Place = tuple[str, str, Cell | None]  # title, caption, picture
Ious = dict[str, dict[int, float]]  # image -> its mIoU as 0, and the IoU of each class in it
Tags = dict[str, list[tuple[str, str, float]]]  # image -> ("best", "", 93.0), ("worst", "dog", 12)


def galleries(albums: list[Album], args: Namespace, warnings: list[str]) -> list[dict]:
    """The galleries of the albums that have pictures, each ordered by its last column's IoU.

    Returns:
        album; order: what it is ordered by; entries: the images, their tags, cells and classes.
    """
    found = []
    for album in albums if args.images or args.per_class else []:
        with noting(warnings, "gallery: "):
            ids = album.data.ids(album.split)
            columns = [c for c in album.columns if any(c.path(i).is_file() for i in ids)]
            if not columns:
                continue
            ious = measure(album, columns[-1], ids, warnings)
            tags = choose(ious, album.data.classes, args)
            order = f"{len(ious)} images, ordered by the IoU of {columns[-1].title}"
            if not ious:
                some = [i for i in ids if columns[-1].path(i).is_file()]
                tags = {i: [] for i in spread(some, 3 * args.images)}
                order = "a sample; there is no ground truth"
            entries = []
            for i, strip in album.strips(tags, warnings, "gallery"):
                cells = [(t, jpeg_uri(c.picture, args.side), c.iou) for t, c in strip.items()]
                labels = ious.get(i) or np.unique([*strip.values()][-1].label).tolist()
                classes = sorted(c for c in labels if 0 < c < images.IGNORE)
                entries.append({"id": i, "tags": tags[i], "cells": cells, "classes": classes})
            if entries:
                found.append({"album": album, "order": order, "entries": entries})
    return found


def measure(album: Album, column: Column, ids: list[str], warnings: list[str]) -> Ious:
    """The IoUs of a column's images that have a ground truth."""
    ious: Ious = {}
    for image_id in Bar(ids, desc=f"gallery {album.split}", unit="image"):
        with noting(warnings, "gallery: "):
            truth = album.truth(image_id)
            label = None if truth is None else album.label(column, image_id, truth.shape)[0]
            if label is not None:
                matrix = album.confusion(label, truth)
                present = np.flatnonzero(matrix.matrix.sum(1)[1:]) + 1
                of_classes = zip(present.tolist(), matrix.iou()[present], strict=True)
                ious[image_id] = {0: matrix.miou(), **dict(of_classes)}
    return {image_id: found for image_id, found in ious.items() if np.isfinite(found[0])}


def places(n: int, count: int) -> dict[str, range]:
    """Positions of the best, median and worst of n images in falling order; none twice."""
    best = range(min(count, n))
    worst = range(max(len(best), n - count), n)
    middle = range(len(best), worst.start)
    start = middle.start + max(0, (len(middle) - count + 1) // 2)
    median = range(start, min(start + count, middle.stop))
    return dict(zip(SECTIONS, (best, median, worst), strict=True))


def choose(ious: Ious, classes: list[str], args: Namespace) -> Tags:
    """The best, median and worst images by mIoU, then by the IoU of each class in them."""
    tags: Tags = {}
    for index, name in enumerate(["", *classes]):
        order = sorted((i for i in ious if index in ious[i]), key=lambda i: (-ious[i][index], i))
        found = places(len(order), args.per_class if index else args.images)
        for section, positions in found.items():
            for image_id in (order[position] for position in positions):
                tags.setdefault(image_id, []).append((section, name, ious[image_id][index]))
    ordered = sorted(tags, key=lambda i: (SECTIONS.index(tags[i][0][0]), -ious[i][0]))
    return {image_id: tags[image_id] for image_id in ordered}


def spread(ids: list[str], count: int) -> list[str]:
    """`count` of the ids, evenly spread."""
    places = np.linspace(0, len(ids), min(count, len(ids)), endpoint=False)
    return [ids[int(place)] for place in places]


def jpeg_uri(picture: np.ndarray, side: int) -> str:
    """A uint8 RGB picture (H, W, 3), scaled to fit a square, as a data URI."""
    buffer = io.BytesIO()
    Image.fromarray(images.fit(picture, side)).save(buffer, format="JPEG", quality=78)
    return data_uri("image/jpeg", buffer.getvalue())


def overview(family: Family, albums: list[Album], args: Namespace, warnings: list[str]) -> None:
    """Draw images of a family's albums, OUT/overview.png; short rows stand two or more abreast.

    A picture shows every step: what the segmentation was not asked for, the device does now.
    """
    lines: list[list[Place]] = []
    unknown = set(args.ids)
    with tempfile.TemporaryDirectory() as temporary:
        for album in albums:
            with noting(warnings, "overview: "):
                abreast = max(1, WIDTH // len(album.titles))
                listed = album.data.ids(album.split)
                ids = [i for i in args.ids if i in listed]
                unknown -= set(listed)
                full = min(-(-args.overview // abreast), len(listed) // abreast) * abreast
                ids = ids or spread(listed, full or args.overview)
                with noting(warnings, "overview: "):
                    out = Path(temporary, "segmentations")
                    album.columns += segment(family, album, ids, args.device, out)
                strips = list(album.strips(ids, warnings, "overview"))
                lines += arrange(album.titles, strips, abreast)
    if unknown:
        warnings.append(f"overview: {', '.join(sorted(unknown)[:4])}: in no list of these runs")
    if lines:
        draw(lines, albums[0].data.classes, args.side, args.out / "overview.png")


def segment(family: Family, album: Album, ids: list[str], device: str, out: Path) -> list[Column]:
    """The column of a segmentation that was made of another split: made now, as it was.

    Raises InputError where the model or an image is damaged.
    """
    step = next(s for s in steps.STEPS if s.script == "predict")
    model = Path(dict(step.reads)["--checkpoint"], "model.pt")
    trained = [p for row in family.rows for p in row.seeds if (p.path / model).is_file()]
    if not trained or step in [column.step for column in album.columns]:
        return []
    settings = trained[0].records.get(step.name, {"settings": {}})["settings"]
    command = [album.data.image_path(image_id) for image_id in ids]
    command += ["--out", out, "--checkpoint", trained[0].path / model]
    command += ["--device", device, "--jobs", 1]
    command += ["--scales", *settings["scales"]] if settings.get("scales") else []
    command += [] if settings.get("crf", True) else ["--no-crf"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        predict.main([str(each) for each in command])
    return [Column(step.title, step, out, 0.0)]


def arrange(titles: list[str], strips: list[Strip], abreast: int) -> list[list[Place]]:
    """Lines of places, at most `abreast` images in each, all full; titles are in the first."""
    places = []
    shown = [title for title in titles if any(title in strip for _, strip in strips)]
    abreast = max(n for n in range(1, abreast + 1) if len(strips) % n == 0)
    for number, (image_id, strip) in enumerate(strips):
        for title in shown:
            cell = strip.get(title)
            iou = "" if cell is None or cell.iou is None else f"IoU {cell.iou:.0f}"
            caption = image_id if title == "image" else iou
            places.append((title if number < abreast else "", caption, cell))
    wide = abreast * len(shown)
    return [places[start : start + wide] for start in range(0, len(places), wide or 1)]


def shape_of(place: Place) -> float:
    """Height of a picture by its width, 0 without one."""
    cell = place[2]
    return 0.0 if cell is None else cell.picture.shape[0] / cell.picture.shape[1]


def draw(lines: list[list[Place]], names: list[str], side: int, path: Path) -> None:
    """Write lines of pictures, all of one width, and what the colours in them mean.

    The pictures of the longest line are `side` pixels wide, those of others fill theirs.
    """
    width = max(map(len, lines)) * side
    heights = [
        width / len(line) * max(map(shape_of, line)) + LETTERS * (2 if line[0][0] else 1)
        for line in lines
    ]
    cells = [cell for line in lines for *_, cell in line if cell is not None]
    labels = [np.unique(cell.label) for cell in cells if cell.label is not None]
    found = np.unique(np.concatenate([[0], *labels]))
    shown = [(visual.PALETTE[c], names[c - 1]) for c in found if 0 < c <= len(names)]
    shown += [(visual.PALETTE[images.IGNORE], "not scored")] if images.IGNORE in found else []
    colours = [Patch(facecolor=c / 255, edgecolor="grey", label=name) for c, name in shown]
    with style():
        size = width / DPI, (sum(heights) + 50) / DPI
        figure = Figure(size, DPI, layout="constrained")
        parts = figure.subfigures(len(lines), 1, squeeze=False, height_ratios=heights)
        plain = {"xticks": [], "yticks": [], "frame_on": False}
        for line, part in zip(lines, parts[:, 0], strict=True):
            axes = part.subplots(1, len(line), squeeze=False, subplot_kw=plain)[0]
            for (title, caption, cell), each in zip(line, axes, strict=True):
                each.set_title(textwrap.fill(title, side // 8), fontsize=9)
                each.set_xlabel(caption, fontsize=8)
                if cell is not None:
                    each.imshow(cell.picture)
        if colours:
            figure.legend(handles=colours, loc="outside lower center", ncols=WIDTH, frameon=False)
        with files.atomic_path(path) as temporary:
            figure.savefig(temporary, format="png")
