"""Scores of directories: CAMs at every threshold, label maps; the figures of a confusion matrix."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.data import images
from core.data.datasets import DataRoot
from core.data.metrics import BoundaryIoU, ConfusionMatrix, ThresholdSweep, average_precision, mean
from core.data.scores import Scores, otsu, upsample
from core.recipe import PSEUDO_LABELS

import numpy as np
import torch

Reduce = Callable[[np.ndarray], np.ndarray]  # an int64 array -> its sum over all processes


@dataclass
class OfScores:
    """What is counted of scores: all thresholds at once; each image at its own, label-free one."""

    sweep: ThresholdSweep
    auto: ConfusionMatrix

    def merge(self, other: "OfScores") -> None:
        """Add the counts of another process."""
        self.sweep.merge(other.sweep)
        self.auto.merge(other.auto)

    def reduce(self, total: Reduce) -> None:
        """Make it that of all processes."""
        self.sweep.histogram = total(self.sweep.histogram)
        self.auto.matrix = total(self.auto.matrix)

    def figures(self, data: DataRoot) -> dict[str, Any]:
        """At the best threshold, which the masks chose of several; the sweep, default and auto."""
        rows = [figures(matrix, data) for matrix in self.sweep.confusions()]
        best = int(np.argmax([row["miou"] for row in rows]))
        if not data.background:
            return rows[best] | {"threshold": None, "sweep": [], "masks_used_for": "score"}
        thresholds = self.sweep.thresholds.tolist()
        keys = ("miou", "fp", "fn")
        sweep = [
            {"threshold": t} | {key: row[key] for key in keys}
            for t, row in zip(thresholds, rows, strict=True)
        ]
        usual = [each for each in sweep if each["threshold"] == PSEUDO_LABELS.threshold]
        chosen = len(thresholds) > 1
        return rows[best] | {
            "threshold": thresholds[best],
            "masks_used_for": "threshold and score" if chosen else "score",
            "at_default": usual[0] if usual else None,
            "at_auto": {key: figures(self.auto, data)[key] for key in keys},
            "sweep": sweep if chosen else [],
        }


@dataclass
class OfLabels:
    """What is counted of label maps."""

    confusion: ConfusionMatrix
    boundary: BoundaryIoU

    def merge(self, other: "OfLabels") -> None:
        """Add the counts of another process."""
        self.confusion.merge(other.confusion)
        self.boundary.merge(other.boundary)

    def reduce(self, total: Reduce) -> None:
        """Make it that of all processes."""
        self.confusion.matrix = total(self.confusion.matrix)
        self.boundary.counts = total(self.boundary.counts)

    def figures(self, data: DataRoot) -> dict[str, Any]:
        """Of label maps as they are: the masks choose nothing."""
        edges = self.boundary.iou()
        return figures(self.confusion, data) | {
            "threshold": None,
            "masks_used_for": "score",
            "boundary_miou": round(mean(edges), 4),
            "boundary_iou": by_name(edges, data),
        }


def nothing(data: DataRoot, thresholds: Sequence[float] | None) -> Any:
    """Counts of no image: of scores with thresholds, of label maps without."""
    matrix = ConfusionMatrix(data.n_labels)
    if thresholds is None:
        return OfLabels(matrix, BoundaryIoU(data.n_labels))
    return OfScores(ThresholdSweep(data.n_labels, thresholds), matrix)


def scores(
    data: DataRoot, folder: Path, masks: str, thresholds: Sequence[float], ids: Sequence[str]
) -> OfScores:
    """One joint histogram of ground truth, best class and its score, over the given images."""
    counts = nothing(data, thresholds)
    for image_id in ids:
        file = Scores.load(folder / f"{image_id}.npz", len(data.classes))
        mask = images.read_label(data.mask_path(image_id, masks), data.n_labels, file.size)
        best, classes = best_class(file)
        counts.sweep.update(classes, best, mask)
        level = otsu(best) if len(file.classes) else np.inf
        counts.auto.update(classes * (best > level), mask)  # a third of np.where's time
    return counts


def labels(data: DataRoot, folder: Path, masks: str, ids: Sequence[str]) -> OfLabels:
    """What is counted of label maps `folder/<id>.png`."""
    counts = nothing(data, None)
    for image_id in ids:
        mask = images.read_label(data.mask_path(image_id, masks), data.n_labels)
        path = folder / f"{image_id}.png"
        label = images.read_label(path, data.n_labels, mask.shape, "mask")
        counts.confusion.update(label, mask)
        counts.boundary.update(label, mask)
    return counts


def of_classifier(
    logits: np.ndarray, labels: Sequence[Sequence[int]], data: DataRoot
) -> dict[str, Any]:
    """Average precision of every class, in percent, from logits (N, C) and each image's classes
    1..C; None for a class that no image has."""
    positive = np.zeros(logits.shape, bool)
    for row, classes in zip(positive, labels, strict=True):
        row[np.array(classes, int) - 1] = True
    each = [average_precision(*pair) for pair in zip(logits.T, positive.T, strict=True)]
    return {
        "mean_average_precision": round(mean(np.array(each)), 4),
        "average_precision": dict(zip(data.classes, map(known, each), strict=True)),
        "images": len(labels),
    }


def best_class(file: Scores) -> tuple[np.ndarray, np.ndarray]:
    """The best score of every pixel, float32 (H, W), and its class, uint8 (H, W).

    Without any class all is background, at any threshold.
    """
    if not len(file.classes):
        return np.full(file.size, -np.inf, np.float32), np.zeros(file.size, np.uint8)
    best, place = upsample(torch.from_numpy(file.cam), file.size).max(0)
    return best.numpy(), file.classes[place.numpy()]


def figures(matrix: ConfusionMatrix, data: DataRoot) -> dict[str, Any]:
    """The figures of a confusion matrix for people and JSON; NaN (a class nowhere) becomes None.

    `fp` and `fn` are those of the released evaluate.py: over the foreground. `confusion`: pixels,
    a row for each label of the ground truth, a column for each predicted; the last: no class.
    """
    return {
        "miou": round(matrix.miou(), 4),
        "iou": by_name(matrix.iou(), data),
        "precision": by_name(matrix.precision(), data),
        "recall": by_name(matrix.recall(), data),
        "confusion": matrix.matrix.tolist(),
        "fp": known(matrix.fp(background=False), 6),
        "fn": known(matrix.fn(background=False), 6),
    }


def known(value: float, digits: int = 4) -> float | None:
    """A figure for JSON, which has no NaN."""
    return None if np.isnan(value) else round(value, digits)


def by_name(values: np.ndarray, data: DataRoot) -> dict[str, float | None]:
    """Figures by class name, None for NaN; without the background where there is none."""
    named = dict(zip(["background", *data.classes], map(known, values.tolist()), strict=True))
    if not data.background:
        del named["background"]
    return named
