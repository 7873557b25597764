"""Scores of directories: CAMs at every threshold, label maps; the figures of a confusion matrix."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.data import images
from core.data.datasets import DataRoot
from core.data.metrics import ConfusionMatrix, ThresholdSweep
from core.data.scores import Scores, upsample

import numpy as np
import torch


def scores(
    data: DataRoot, folder: Path, masks: str, thresholds: Sequence[float], ids: Sequence[str]
) -> ThresholdSweep:
    """One joint histogram of ground truth, best class and its score, over the given images."""
    sweep = ThresholdSweep(data.n_labels, thresholds)
    for image_id in ids:
        file = Scores.load(folder / f"{image_id}.npz", len(data.classes))
        mask = images.read_label(data.mask_path(image_id, masks), data.n_labels, file.size)
        best, classes = best_class(file)
        sweep.update(classes, best, mask)
    return sweep


def labels(data: DataRoot, folder: Path, masks: str, ids: Sequence[str]) -> ConfusionMatrix:
    """The confusion matrix of label maps `folder/<id>.png`."""
    matrix = ConfusionMatrix(data.n_labels)
    for image_id in ids:
        mask = images.read_label(data.mask_path(image_id, masks), data.n_labels)
        label = images.read_label(folder / f"{image_id}.png", data.n_labels, mask.shape)
        matrix.update(label, mask)
    return matrix


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

    `fp` and `fn` are those of the released evaluate.py: over the foreground.
    """
    iou = [None if np.isnan(value) else round(value, 4) for value in matrix.iou().tolist()]
    by_name = dict(zip(["background", *data.classes], iou, strict=True))
    if not data.background:
        del by_name["background"]
    return {
        "miou": round(matrix.miou(), 4),
        "iou": by_name,
        "fp": round(matrix.fp(background=False), 6),
        "fn": round(matrix.fn(background=False), 6),
    }
