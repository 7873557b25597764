"""What every stage made of one image: its picture, its label map, its IoU."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from core.data import images, visual
from core.data.datasets import DataRoot
from core.data.scores import Scores, upsample

TITLES = {
    "image": "image",
    "truth": "ground truth",
    "cam": "CAM",
    "rw": "+RW",
    "pseudo": "+RW+dCRF",
    "segmentation": "segmentation",
}
THRESHOLDS = {"cam": 0.2, "rw": 0.35}  # background scores where no evaluation names the best


@dataclass
class Cell:
    """A picture, and the label map it stands for (None for the photograph)."""

    picture: np.ndarray
    label: np.ndarray | None = None


@dataclass
class StageFolders:
    """Where the stages' outputs of one data set lie.

    Attributes:
        folders: "cam", "rw", "pseudo", "segmentation" -> directories, searched in order.
        thresholds: "cam", "rw" -> background score of their label maps.
    """

    data: DataRoot
    folders: dict[str, list[Path]] = field(default_factory=dict)
    thresholds: dict[str, float] = field(default_factory=dict)
    masks: str = "SegmentationClass"

    def find(self, stage: str, image_id: str) -> Path | None:
        """The stage's file of an image, if it is there."""
        if stage == "truth":
            candidates = [self.data.mask_path(image_id, self.masks)]
        else:
            suffix = ".npz" if stage in ("cam", "rw") else ".png"
            candidates = [f / f"{image_id}{suffix}" for f in self.folders.get(stage, [])]
        return next((path for path in candidates if path.is_file()), None)

    def label(self, stage: str, image_id: str, size: tuple[int, int]) -> np.ndarray | None:
        """The stage's label map, uint8 (H, W); CAMs and scores at their threshold."""
        path = self.find(stage, image_id)
        if path is None:
            return None
        if stage in ("cam", "rw"):
            return self._scores(stage, path, size)[1]
        return images.read_label(path, self.data.n_labels, size)

    def _scores(
        self, stage: str, path: Path, size: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best class's score in 0..1 and the label map, both (H, W)."""
        file = Scores.load(path, len(self.data.classes), size)
        scores, best = upsample(torch.from_numpy(file.cam).float(), size).max(0)
        threshold = self.thresholds.get(stage, THRESHOLDS[stage])
        label = np.where(scores.numpy() > threshold, file.classes[best.numpy()], 0)
        return scores.numpy(), label.astype(np.uint8)

    def image(self, image_id: str) -> np.ndarray:
        """The photograph, uint8 (H, W, 3)."""
        return images.as_array(images.read_image(self.data.image_path(image_id)))

    def cell(self, stage: str, image_id: str, image: np.ndarray) -> Cell | None:
        """The stage's picture: heat map for CAMs, label map over the photograph after that."""
        if stage == "image":
            return Cell(image)
        size = image.shape[:2]
        path = self.find(stage, image_id)
        if path is None:
            return None
        if stage == "cam":
            scores, label = self._scores(stage, path, size)
            return Cell(visual.heat_map(image, scores), label)
        label = self.label(stage, image_id, size)
        return Cell(visual.overlay(image, label, 0.8), label)


def image_iou(label: np.ndarray, truth: np.ndarray) -> dict[int, float]:
    """IoU in percent of every label in the ground truth or the prediction; 255 is left out.

    The mean over these labels is the image's IoU. A class predicted though absent counts 0.
    """
    known = truth != images.IGNORE
    label, truth = label[known].astype(np.int64), truth[known].astype(np.int64)
    both = np.bincount(truth[truth == label], minlength=256)
    union = np.bincount(truth, minlength=256) + np.bincount(label, minlength=256) - both
    return {int(c): 100.0 * both[c] / union[c] for c in np.flatnonzero(union)}


def mean_iou(ious: dict[int, float]) -> float | None:
    """The mean of `image_iou`, None where nothing is labelled."""
    return sum(ious.values()) / len(ious) if ious else None
