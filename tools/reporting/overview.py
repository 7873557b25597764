"""The overview: a picture of some images and what every step made of them."""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

import predict
from core import files
from core.data import visual
from tools import steps
from tools.reporting.charts import STYLE
from tools.reporting.collect import Family, Pipeline, mapping
from tools.reporting.gallery import noting, spread
from tools.reporting.pictures import Album, Cell, Choice, Column

WIDTH, DPI = 6, 100  # columns that short rows fill together; pixels an inch
Place = tuple[str, str, Cell | None]  # title, caption, picture


def overview(
    family: Family,
    albums: list[Album],
    choice: Choice,
    device: str,
    warnings: list[str],
    path: Path,
) -> None:
    """Draw images of a family's albums, a PNG; short rows stand two or more abreast.

    A picture shows every step: what the segmentation was not asked for, `device` does now.
    """
    lines: list[list[Place]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for album in albums:
            with noting(warnings, "overview"):
                abreast = max(1, WIDTH // len(album.titles))
                listed = album.data.ids(album.split)
                ids = [i for i in choice.ids if i in listed]
                ids = ids or spread(listed, -(-choice.overview // abreast) * abreast)
                folder = Path(temporary, str(len(lines)))
                with noting(warnings, "overview"):
                    album.columns += segmented(family, album, ids, device, folder)
                lines += arrange(album, ids, abreast, warnings)
    if lines:
        draw(lines, albums[0].data.classes, choice.side, path)


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
            settings = mapping(models[model].records.get(step.name, {}).get("settings"))
            command = [*paths, "--out", out, "--checkpoint", model, "--device", device, "--jobs", 1]
            command += ["--scales", *settings["scales"]] if settings.get("scales") else []
            command += [] if settings.get("crf", True) else ["--no-crf"]
            with contextlib.redirect_stdout(io.StringIO()):
                predict.main([str(each) for each in command])
            made.append(Column(step.title, step, Pipeline(folder), 0.0))
    return made


def arrange(album: Album, ids: list[str], abreast: int, warnings: list[str]) -> list[list[Place]]:
    """Lines of places, `abreast` images in each; titles stand in the first line."""
    strips = {}
    for image_id in ids:
        with noting(warnings, "overview"):
            strips[image_id] = album.strip(image_id)
    shown = [t for t in album.titles if any(t in strip for strip in strips.values())]
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
