"""What the steps made of the images of a split: pictures, label maps and the images' own IoU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from core import recipe
from core.data import images, scoring, visual
from core.data.datasets import DataRoot
from core.data.metrics import ConfusionMatrix
from core.data.scores import Scores
from core.errors import InputError
from tools import steps
from tools.reporting import summarise
from tools.reporting.collect import Family, Pipeline, number
from tools.steps import Step


@dataclass(frozen=True)
class Choice:
    """What to show of which images.

    Attributes:
        data: the data root; None takes the one that the runs were given. threshold: background
        score of scores whose evaluation names none. images: best, median and worst, each;
        per_class: the same for every class. overview: images of a split in the overview, if no
        `ids` are given. side: in pixels.
    """

    data: Path | None = None
    threshold: float | None = None
    images: int = 3
    per_class: int = 1
    overview: int = 4
    ids: Sequence[str] = ()
    side: int = 192


@dataclass
class Column:
    """What a step made in a run; `threshold` is the background score of its scores."""

    title: str
    step: Step
    pipeline: Pipeline
    threshold: float

    def path(self, image_id: str) -> Path:
        """The step's file of an image."""
        suffix = ".npz" if self.step.holds == "scores" else ".png"
        return self.pipeline.path / self.step.name / f"{image_id}{suffix}"


@dataclass
class Cell:
    """A picture, uint8 (H, W, 3), its label map, and its mIoU in percent against a ground truth."""

    title: str
    picture: np.ndarray
    label: np.ndarray | None = None
    iou: float | None = None


@dataclass
class Album:
    """The images of a split beside what the steps made of them, in the steps' order."""

    data: DataRoot
    split: str
    masks: str
    columns: list[Column] = field(default_factory=list)

    @property
    def titles(self) -> list[str]:
        """Of the cells: image, ground truth, columns."""
        return ["image", "ground truth", *(column.title for column in self.columns)]

    def truth(self, image_id: str, size: tuple[int, int] | None = None) -> np.ndarray | None:
        """The ground truth, uint8 (H, W), where there is some.

        Raises:
            InputError: damaged, or of another size than the image.
        """
        path = self.data.mask_path(image_id, self.masks)
        return images.read_label(path, self.data.n_labels, size) if path.is_file() else None

    def label(
        self, column: Column, image_id: str, size: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray | None] | None:
        """Label map uint8 (H, W) and, of scores, the best class's; None without the step's file.

        Raises:
            InputError: damaged, or of another size than the image.
        """
        path = column.path(image_id)
        if not path.is_file():
            return None
        if column.step.holds == "labels":
            return images.read_label(path, self.data.n_labels, size), None
        best, classes = scoring.best_class(Scores.load(path, len(self.data.classes), size))
        return np.where(best > column.threshold, classes, 0).astype(np.uint8), best

    def strip(self, image_id: str) -> dict[str, Cell]:
        """The cells of an image by title; what is not there is left out.

        Raises:
            InputError: a file is damaged or does not fit the image.
        """
        image = images.as_array(images.read_image(self.data.image_path(image_id)))
        size = image.shape[:2]
        truth = self.truth(image_id, size)
        cells = [Cell("image", image)]
        if truth is not None:
            cells.append(Cell("ground truth", visual.overlay(image, truth, 0.8), truth))
        for column in self.columns:
            found = self.label(column, image_id, size)
            if found is None:
                continue
            label, best = found
            picture = visual.overlay(image, label, 0.8)
            if column.step.makes_cams:
                picture = visual.heat_map(image, best)
            iou = (
                None
                if truth is None
                else number(confusion(label, truth, self.data.n_labels).miou())
            )
            cells.append(Cell(column.title, picture, label, iou))
        return {cell.title: cell for cell in cells}


def confusion(label: np.ndarray, truth: np.ndarray, n_labels: int) -> ConfusionMatrix:
    """Of one image. A class predicted though absent counts 0 in its mIoU."""
    matrix = ConfusionMatrix(n_labels)
    matrix.update(label, truth)
    return matrix


def albums(family: Family, choice: Choice, warnings: list[str]) -> list[Album]:
    """The albums of a family: one for each split that its steps worked on."""
    levels = [choice.threshold, recipe.PSEUDO_LABELS.threshold]
    found = []
    for kind in dict.fromkeys(step.split for step in steps.STEPS if step.title):
        titled = [step for step in steps.STEPS if step.title and step.split == kind]
        made = [(s, row, p) for s in titled for row in family.rows if (p := row.having(s))]
        if not made:
            continue
        try:
            data = DataRoot(choice.data or Path(made[0][2].data))
        except InputError as error:
            warnings.append(f"{family.name}: no pictures: {error}")
            return []
        scored = sorted(made, key=lambda each: each[0].figures not in each[2].scores)
        step, _, pipeline = scored[0]  # its images have a ground truth, if any have
        split = pipeline.setting(step, "split", kind)
        masks = pipeline.setting(step, "masks", "SegmentationClass")
        album = Album(data, split, masks)
        for step, row, pipeline in made:
            name = summarise.label(row, step) if step.makes_cams else step.title
            if any(name == column.title for column in album.columns):
                name = f"{name} ({summarise.title(row)})"
            best = number(pipeline.scores.get(step.figures, {}).get("threshold"))
            level = next(t for t in (best, *levels) if t is not None)
            album.columns.append(Column(name, step, pipeline, level))
        found.append(album)
    return found
