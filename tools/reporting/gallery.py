"""The best, median and worst images of an album, as data URIs."""

from __future__ import annotations

import base64
import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from PIL import Image
from tqdm import tqdm

from core.data import images, visual
from core.errors import InputError
from tools.reporting.pictures import Album, Choice, confusion

SECTIONS = ("best", "median", "worst")


@dataclass
class Entry:
    """One image: its section, tags ("best 93", "worst dog 12" ...), classes and pictures."""

    image_id: str
    section: str
    is_overall: bool
    classes: list[int]
    tags: list[str] = field(default_factory=list)
    cells: list[tuple[str, str, float | None]] = field(default_factory=list)  # title, URI, IoU


@dataclass
class Gallery:
    """The chosen images of one split.

    Attributes:
        order: what they are ordered by. classes: number -> name and colour of those in the images.
    """

    split: str
    order: str
    classes: dict[int, tuple[str, str]]
    entries: list[Entry]

    @property
    def widest(self) -> int:
        """The most pictures of an image."""
        return max((len(entry.cells) for entry in self.entries), default=0)


def galleries(albums: list[Album], choice: Choice, warnings: list[str]) -> list[Gallery]:
    """The galleries of the albums that have pictures."""
    found = []
    for album in albums if choice.images or choice.per_class else []:
        with noting(warnings, "gallery"):
            found.append(gallery(album, choice, warnings))
    return [each for each in found if each is not None]


def gallery(album: Album, choice: Choice, warnings: list[str]) -> Gallery | None:
    """The gallery of an album, ordered by its last column; None where there are no pictures.

    Raises:
        InputError: no such split.
    """
    ids = album.data.ids(album.split)
    columns = [c for c in album.columns if any(c.path(i).is_file() for i in ids)]
    if not columns:
        return None
    ranked, ious, means = columns[-1], {}, {}
    for image_id in tqdm(ids, desc=f"gallery {album.split}", unit="image", dynamic_ncols=True):
        try:
            truth = album.truth(image_id)
            found = None if truth is None else album.label(ranked, image_id, truth.shape)
        except InputError as error:
            warnings.append(f"gallery: {error}")
            continue
        if found is not None:
            matrix = confusion(found[0], truth, album.data.n_labels)
            present = np.flatnonzero(matrix.matrix.sum(1)[1:]) + 1
            ious[image_id] = dict(zip(present.tolist(), matrix.iou()[present], strict=True))
            means[image_id] = matrix.miou()
    means = {image_id: value for image_id, value in means.items() if np.isfinite(value)}
    entries = choose(means, ious, album.data.classes, choice)
    if not means:
        some = [i for i in ids if ranked.path(i).is_file()]
        entries = [Entry(i, "sample", True, []) for i in spread(some, 3 * choice.images)]
    for entry in entries:
        with noting(warnings, "gallery"):
            cells = list(album.strip(entry.image_id).values())
            for cell in cells:
                uri = jpeg_uri(images.fit(cell.picture, choice.side))
                entry.cells.append((cell.title, uri, cell.iou))
            if not means:
                entry.classes = [c for c in np.unique(cells[-1].label).tolist() if 0 < c < 255]
    entries = [entry for entry in entries if entry.cells]
    order = f"{len(means)} images, ordered by the IoU of {ranked.title}"
    order = order if means else "a sample; there is no ground truth"
    present = sorted({c for entry in entries for c in entry.classes})
    classes = {
        c: (album.data.classes[c - 1], f"rgb{tuple(visual.PALETTE[c].tolist())}") for c in present
    }
    return Gallery(album.split, order, classes, entries)


@contextlib.contextmanager
def noting(warnings: list[str], what: str) -> Iterator[None]:
    """Turn bad input into a warning; the rest of the block is left out."""
    try:
        yield
    except InputError as error:
        warnings.append(f"{what}: {error}")


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
    choice: Choice,
) -> list[Entry]:
    """The best, median and worst images by mIoU, then by the IoU of each class in them."""
    chosen: dict[str, Entry] = {}
    rankings = [("", choice.images, means)]
    for index, name in enumerate(classes, 1):
        score = {i: ious[i][index] for i in means if index in ious[i]}
        rankings.append((f" {name}", choice.per_class, score))
    for suffix, number, score in rankings:
        order = sorted(score, key=lambda i: (-score[i], i))
        for section, positions in places(len(order), number).items():
            for image_id in (order[position] for position in positions):
                new = Entry(image_id, section, not suffix, sorted(ious[image_id]))
                entry = chosen.setdefault(image_id, new)
                entry.tags.append(f"{section}{suffix} {score[image_id]:.0f}")
    return sorted(chosen.values(), key=lambda e: (SECTIONS.index(e.section), -means[e.image_id]))


def spread(ids: list[str], count: int) -> list[str]:
    """`count` of the ids, evenly spread."""
    places = np.linspace(0, len(ids), min(count, len(ids)), endpoint=False)
    return [ids[int(place)] for place in places]


def jpeg_uri(picture: np.ndarray) -> str:
    """A uint8 RGB picture (H, W, 3) as a data URI."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="JPEG", quality=78)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
