"""What the steps made of the images of a split: pictures, label maps and the images' own IoU."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from core import recipe
from core.data import images, scoring, visual
from core.data.datasets import DataRoot
from core.data.metrics import ConfusionMatrix
from core.data.scores import Scores
from tools import steps
from tools.reporting import summarise
from tools.reporting.collect import Family, noting, number
from tools.steps import Step


class Column(NamedTuple):
    """What a step left in a folder; `threshold` is the background score of its scores."""

    title: str
    step: Step
    folder: Path
    threshold: float

    def path(self, image_id: str) -> Path:
        """The step's file of an image."""
        return self.folder / f"{image_id}{'.npz' if self.step.holds == 'scores' else '.png'}"


class Cell(NamedTuple):
    """A picture, uint8 (H, W, 3), its label map, and its mIoU in percent against a ground truth."""

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
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Label map uint8 (H, W), None without the step's file; of scores, the best class's.

        Raises:
            InputError: damaged, or of another size than the image.
        """
        path = column.path(image_id)
        if not path.is_file():
            return None, None
        if column.step.holds == "labels":
            return images.read_label(path, self.data.n_labels, size), None
        best, classes = scoring.best_class(Scores.load(path, len(self.data.classes), size))
        return np.where(best > column.threshold, classes, 0).astype(np.uint8), best

    def strips(
        self, ids: Iterable[str], warnings: list[str], what: str
    ) -> Iterator[tuple[str, dict[str, Cell]]]:
        """Images and their cells by title: what is there of them. Damaged ones are left out."""
        for image_id in ids:
            with noting(warnings, f"{what}: "):
                image = images.as_array(images.read_image(self.data.image_path(image_id)))
                strip = {"image": Cell(image)}
                truth = self.truth(image_id, image.shape[:2])
                if truth is not None:
                    strip["ground truth"] = Cell(visual.overlay(image, truth, 0.8), truth)
                for column in self.columns:
                    label, best = self.label(column, image_id, image.shape[:2])
                    if label is None:
                        continue
                    picture = visual.overlay(image, label, 0.8)
                    if column.step.makes_cams:
                        picture = visual.heat_map(image, best)
                    iou = None if truth is None else number(self.confusion(label, truth).miou())
                    strip[column.title] = Cell(picture, label, iou)
                yield image_id, strip

    def confusion(self, label: np.ndarray, truth: np.ndarray) -> ConfusionMatrix:
        """Of one image. A class predicted though absent counts 0 in its mIoU."""
        matrix = ConfusionMatrix(self.data.n_labels)
        matrix.update(label, truth)
        return matrix


def albums(family: Family, args: argparse.Namespace, warnings: list[str]) -> list[Album]:
    """The albums of a family: one for each split that its steps worked on.

    Args:
        args: the report's options; `data` and `threshold` take the place of what the runs tell.
    """
    found = []
    for split in dict.fromkeys(step.split for step in steps.STEPS if step.title):
        titled = [step for step in steps.STEPS if step.title and step.split == split]
        made = [
            (step, row, next(p for p in row.seeds if step.name in p.records))
            for step in titled
            for row in family.rows
            if step.name in row.records
        ]
        if not made:
            continue
        # Its images have a ground truth, if any have.
        step, _, scored = min(made, key=lambda each: each[0].figures not in each[2].scores)
        told = scored.records[step.name]["settings"]
        if step.figures in scored.scores:
            told = told | scored.scores[step.figures]["run"]["settings"]
        with noting(warnings, f"{family.name}: no pictures: "):
            data = DataRoot(args.data or Path(made[0][2].data))
            masks = str(told.get("masks") or "SegmentationClass")
            found.append(Album(data, str(told.get("split") or split), masks))
            for step, row, pipeline in made:
                title = summarise.label(row, step) if step.makes_cams else step.title
                if title in found[-1].titles:
                    title = f"{title} ({row.title})"
                scores = pipeline.scores.get(step.figures, {})
                levels = scores.get("threshold"), args.threshold, recipe.PSEUDO_LABELS.threshold
                level = next(t for t in levels if t is not None)
                found[-1].columns.append(Column(title, step, pipeline.path / step.name, level))
    return found
