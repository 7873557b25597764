"""Galleries: the best, median and worst images of a run, stage by stage, as data URIs."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from core.data import images
from core.data.datasets import DataRoot
from core.errors import InputError
from tools.reporting.collect import Folder, mapping, number
from tools.reporting.pictures import TITLES, StageFolders, image_iou, mean_iou

STAGES = {  # column -> (directory, stage) that made it
    "cam": ("cam", "make_cam"),
    "rw": ("rw", "random_walk"),
    "pseudo": ("pseudo", "make_pseudo_labels"),
    "segmentation": ("predictions", "predict"),
}
SECTIONS = ("best", "median", "worst")


@dataclass
class Entry:
    """One image: its tags ("best", "worst dog" ...), classes, and per column (title, URI, IoU)."""

    image_id: str
    section: str
    tags: list[str]
    overall: bool
    classes: list[int]
    cells: list[tuple[str, str | None, float | None]] = field(default_factory=list)


@dataclass
class Gallery:
    """The chosen images of one split; `ranked_by` is the column whose IoU orders them."""

    split: str
    ranked_by: str
    n_images: int
    classes: list[str]
    entries: list[Entry]


@dataclass
class Choice:
    """How much to show: images per section, per section and class, and the thumbnails' side."""

    images: int = 3
    per_class: int = 1
    side: int = 150
    data: Path | None = None


def galleries(folder: Folder, choice: Choice, warnings: list[str]) -> list[Gallery]:
    """The galleries of a run: of the split its CAMs were scored on, and of its predictions."""
    found = {
        stage: path
        for stage, (name, made_by) in STAGES.items()
        if (path := folder.stage_folder(name, made_by)) is not None
    }
    if not found:
        return []
    try:
        data = DataRoot(choice.data or _data_root(folder))
    except InputError as error:
        warnings.append(f"{folder.path}: no gallery: {error}")
        return []
    result = []
    for stages, names, split in (
        (("cam", "rw", "pseudo"), ("cam", "rw", "pseudo"), "train"),
        (("segmentation",), ("val", "test"), "val"),
    ):
        runs = [mapping(folder.scores.get(name, {}).get("run")) for name in names]
        settings = [mapping(run.get("settings")) for run in runs]
        split = next((str(s["split"]) for s in settings if s.get("split")), split)
        masks = next((str(s["masks"]) for s in settings if s.get("masks")), "SegmentationClass")
        if any(stage in found for stage in stages):
            best = {n: number(folder.scores.get(n, {}).get("threshold")) for n in ("cam", "rw")}
            thresholds = {n: value for n, value in best.items() if value is not None}
            where = StageFolders(data, {s: [p] for s, p in found.items()}, thresholds, masks)
            try:
                gallery = _gallery(where, split, stages, choice, warnings)
            except InputError as error:
                warnings.append(f"{folder.path}: no gallery: {error}")
                continue
            if gallery is not None:
                result.append(gallery)
    return result


def _data_root(folder: Folder) -> Path:
    roots = [mapping(r.get("arguments")).get("data") for r in folder.stages.values()]
    return Path(next((str(root) for root in roots if root), "?"))


def _gallery(
    where: StageFolders, split: str, stages: tuple[str, ...], choice: Choice, warnings: list[str]
) -> Gallery | None:
    ids = where.data.ids(split)
    present = [s for s in stages if any(where.find(s, i) for i in ids)]
    if not present:
        return None
    ranked_by = present[-1]
    ious: dict[str, dict[int, float]] = {}
    truths: dict[str, list[int]] = {}
    for image_id in tqdm(ids, desc=f"gallery {split}", unit="image", dynamic_ncols=True):
        path = where.find("truth", image_id)
        if path is None or where.find(ranked_by, image_id) is None:
            continue
        try:
            truth = images.read_label(path, where.data.n_labels)
            label = where.label(ranked_by, image_id, truth.shape)
        except InputError as error:
            warnings.append(f"gallery: {error}")
            continue
        each = image_iou(label, truth)
        if each:
            ious[image_id] = each
            truths[image_id] = [int(c) for c in set(truth.ravel().tolist()) - {0, images.IGNORE}]
    entries = choose(ious, truths, where.data.classes, choice)
    if not ious:  # no ground truth: a sample, spread over the split
        some = [i for i in ids if where.find(ranked_by, i)]
        some = some[:: max(1, len(some) // (3 * choice.images))][: 3 * choice.images]
        entries = [Entry(i, "sample", ["no ground truth"], True, []) for i in some]
    for entry in entries:
        try:
            _draw(entry, where, choice.side)
        except InputError as error:
            warnings.append(f"gallery: {error}")
    entries = [entry for entry in entries if entry.cells]
    return Gallery(split, TITLES[ranked_by], len(ious), where.data.classes, entries)


def places(n: int, count: int) -> dict[str, range]:
    """Positions of the best, median and worst of n images in falling order; none twice."""
    best = range(min(count, n))
    worst = range(max(len(best), n - count), n)
    middle = range(len(best), worst.start)
    start = middle.start + max(0, (len(middle) - count + 1) // 2)
    return {"best": best, "median": range(start, min(start + count, middle.stop)), "worst": worst}


def choose(
    ious: dict[str, dict[int, float]],
    truths: dict[str, list[int]],
    classes: list[str],
    choice: Choice,
) -> list[Entry]:
    """The best, median and worst images by mean IoU, then by the IoU of each class."""
    chosen: dict[str, Entry] = {}
    rankings = [("", choice.images, {i: mean_iou(each) or 0.0 for i, each in ious.items()})]
    for index, name in enumerate(classes, 1):
        score = {i: ious[i].get(index, 0.0) for i in ious if index in truths[i]}
        rankings.append((f" {name}", choice.per_class, score))
    for suffix, count, score in rankings:
        order = sorted(score, key=lambda i: (-score[i], i))
        for section, positions in places(len(order), count).items():
            for image_id in (order[position] for position in positions):
                entry = chosen.get(image_id)
                if entry is None:
                    entry = Entry(image_id, section, [], not suffix, sorted(truths[image_id]))
                    chosen[image_id] = entry
                entry.tags.append(f"{section}{suffix} {score[image_id]:.0f}")
    mean = rankings[0][2]
    return sorted(chosen.values(), key=lambda e: (SECTIONS.index(e.section), -mean[e.image_id]))


def _draw(entry: Entry, where: StageFolders, side: int) -> None:
    image = where.image(entry.image_id)
    cells = {stage: where.cell(stage, entry.image_id, image) for stage in TITLES}
    truth = cells["truth"].label if cells["truth"] else None
    for stage, cell in cells.items():
        iou = None
        if cell is not None and truth is not None and stage not in ("image", "truth"):
            iou = mean_iou(image_iou(cell.label, truth))
        uri = cell and data_uri(images.fit(cell.picture, side))
        entry.cells.append((TITLES[stage], uri, iou))


def data_uri(picture) -> str:
    """A uint8 RGB picture as a JPEG data URI."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=78)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
