"""Whether scores and label maps are worth going on with: figures that need no masks."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from core.data import images
from core.data.scores import Scores

import numpy as np

EMPTY = 0.1  # share of images or class maps that show nothing, from which on it is said
SHOWN = 0.7  # share of the labelled classes that appear in their image's map, under which ...
FULL = 0.9  # share of all pixels that one class takes, or that are ignored, from which on ...
BARE = 0.98  # the same of the background: small objects leave much of it


def measure(
    folder: Path,
    names: Sequence[str],
    classes: Sequence[str],
    labels: Mapping[str, list[int]] | None,
) -> dict[str, Any]:
    """What the label maps `folder/<name>.png` hold, for JSON.

    Args:
        classes: their names, 1..C in the maps. labels: the classes in each image; None: unknown.

    Returns:
        `images`; `empty`, those without any class though they have one (unknown: all without);
        `pixels`, name -> share of all pixels, with `background` and `ignored`; and with labels
        `shown`, name -> [images whose map shows it, images that have it].
    """
    with ThreadPoolExecutor(4) as pool:
        paths = (folder / f"{name}.png" for name in names)
        counts = np.array(list(pool.map(lambda path: _counts(path, len(classes)), paths)))
    inside = counts[:, 1:-1]
    has_class = [labels is None or bool(labels[name]) for name in names]
    total = counts.sum(0) / max(1, counts.sum())
    pixels = dict(zip(["background", *classes], total[:-1].tolist(), strict=True))
    found: dict[str, Any] = {
        "images": len(names),
        "empty": int((~inside.any(1) & np.array(has_class, bool)).sum()),
        "pixels": {k: round(v, 6) for k, v in (pixels | {"ignored": float(total[-1])}).items()},
    }
    if labels is not None:
        has = np.zeros(inside.shape, bool)
        for row, name in zip(has, names, strict=True):
            row[np.array(labels[name], int) - 1] = True
        both = zip((has & (inside > 0)).sum(0).tolist(), has.sum(0).tolist(), strict=True)
        found["shown"] = dict(zip(classes, map(list, both), strict=True))
    return found


def measure_scores(folder: Path, names: Sequence[str], classes: Sequence[str]) -> dict[str, Any]:
    """What the score files `folder/<name>.npz` hold, for JSON: `maps` of classes, `empty` ones.

    An empty map is 0 everywhere: the network finds nothing of a class that the labels name.
    """
    with ThreadPoolExecutor(4) as pool:
        files = (folder / f"{name}.npz" for name in names)
        found = np.array(list(pool.map(lambda path: _empty_maps(path, len(classes)), files)))
    maps, empty = found.reshape(-1, 2).sum(0).tolist()
    return {"images": len(names), "maps": maps, "empty": empty}


def _empty_maps(path: Path, n_classes: int) -> tuple[int, int]:
    """How many maps a score file holds, and how many of them are 0 everywhere."""
    cam = Scores.load(path, n_classes).cam
    return len(cam), int((cam.max((1, 2)) <= 0).sum())


def _counts(path: Path, n_classes: int) -> np.ndarray:
    """Pixels of a label map: background, each class, ignored."""
    counts = np.bincount(images.read_label(path, n_classes + 1).ravel(), minlength=256)
    return np.append(counts[: n_classes + 1], counts[images.IGNORE])


def warnings(found: dict[str, Any]) -> list[str]:
    """What of either a user should see before going on, a line each."""
    lines, n = [], found["images"]
    if "maps" in found:
        some, of = found["empty"], found["maps"]
        return [f"{some} of {of} class maps are empty"] if some > EMPTY * of else []
    if found["empty"] > EMPTY * n:
        lines.append(f"{found['empty']} of {n} label maps show no class at all")
    shown = found.get("shown", {})
    absent = [name for name, (some, of) in shown.items() if of and not some]
    some, of = np.array([*shown.values(), [0, 0]]).sum(0)
    if absent:
        lines.append(f"no label map shows {', '.join(absent[:5])}{' ...' * (len(absent) > 5)}")
    elif some < SHOWN * of:
        lines.append(f"{some} of the images' {of} labelled classes appear in their label map")
    name, share = max(found["pixels"].items(), key=lambda each: each[1])
    if share > (BARE if name == "background" else FULL):
        lines.append(f"{share:.0%} of the pixels are {name}")
    return lines
