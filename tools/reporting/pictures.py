"""What the steps made of the images of a split: pictures, label maps and the images' own IoU."""

from argparse import Namespace
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from core import recipe, steps
from core.data import images, scoring
from core.data.datasets import DataRoot, class_difference
from core.data.metrics import ConfusionMatrix
from core.data.scores import Scores
from core.data.visual import heat_map, overlay
from core.errors import InputError
from core.steps import Step
from tools.reporting import summarise
from tools.reporting.collect import Family, noting, number

import numpy as np


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


Strip = tuple[str, dict[str, Cell]]  # an image, title -> cell
Size = tuple[int, int]  # height, width


@dataclass
class Album:
    """The images of a split beside what the steps made of them, in the steps' order."""

    data: DataRoot
    split: str
    masks: str
    columns: list[Column]

    @property
    def titles(self) -> list[str]:
        """Of the cells: image, ground truth, columns."""
        return ["image", "ground truth", *(column.title for column in self.columns)]

    def truth(self, image_id: str, size: Size | None = None) -> np.ndarray | None:
        """The ground truth, uint8 (H, W), if any. Raises InputError: damaged, of another size."""
        path = self.data.mask_path(image_id, self.masks)
        return images.read_label(path, self.data.n_labels, size) if path.is_file() else None

    def label(self, column: Column, image_id: str, size: Size) -> tuple[np.ndarray | None, ...]:
        """Label map uint8 (H, W), None without the step's file; of scores, the best class's.

        Raises InputError where the file is damaged or of another size.
        """
        path = column.path(image_id)
        if not path.is_file():
            return None, None
        if column.step.holds == "labels":
            return images.read_label(path, self.data.n_labels, size), None
        best, classes = scoring.best_class(Scores.load(path, len(self.data.classes), size))
        return np.where(best > column.threshold, classes, 0).astype(np.uint8), best

    def strips(self, ids: Iterable[str], warnings: list[str], what: str) -> Iterator[Strip]:
        """Images and their cells by title: what is there of them. Damaged ones are left out."""
        for image_id in ids:
            with noting(warnings, f"{what}: "):
                image = images.as_array(images.read_image(self.data.image_path(image_id)))
                strip = {"image": Cell(image)}
                truth = self.truth(image_id, image.shape[:2])
                if truth is not None:
                    strip["ground truth"] = Cell(overlay(image, truth, 0.8), truth)
                for column in self.columns:
                    label, best = self.label(column, image_id, image.shape[:2])
                    if label is not None:
                        is_cam = column.step.makes_cams
                        iou = None if truth is None else self.confusion(label, truth).miou()
                        picture = heat_map(image, best) if is_cam else overlay(image, label, 0.8)
                        strip[column.title] = Cell(picture, label, number(iou))
                yield image_id, strip

    def confusion(self, label: np.ndarray, truth: np.ndarray) -> ConfusionMatrix:
        """Of one image. A class predicted though absent counts 0 in its mIoU."""
        matrix = ConfusionMatrix(self.data.n_labels)
        matrix.update(label, truth)
        return matrix


def albums(family: Family, args: Namespace, warnings: list[str]) -> list[Album]:
    """An album for each split that a family's steps worked on; `args` are the report's options."""
    found = []
    for split in dict.fromkeys(step.split for step in steps.STEPS if step.title):
        made = [
            (step, row, next(p for p in row.seeds if step.name in p.records))
            for step in steps.STEPS
            for row in family.rows
            if step.title and step.split == split and step.name in row.records
        ]
        if not made:
            continue
        # The images of a scored step have a ground truth.
        step, _, first = min(made, key=lambda each: each[0].figures not in each[2].scores)
        told = {"split": split, "masks": "SegmentationClass"}
        evaluations = [first.scores[step.figures]["run"]] if step.figures in first.scores else []
        for record in (first.records[step.name], *evaluations):
            told |= {name: str(value) for name, value in record["settings"].items() if value}
        with noting(warnings, f"{family.name}: no pictures: "):
            data = DataRoot(args.data or Path(made[0][2].data))
            if (classes := first.records[step.name].get("classes")) not in (None, data.classes):
                raise InputError(f"{data.root}: {class_difference(data.classes, classes)}")
            found.append(Album(data, told["split"], told["masks"], []))
            for step, row, pipeline in made:
                title = summarise.label(row, step)
                if title in found[-1].titles:
                    title = f"{title} ({row.title})"
                best = pipeline.scores.get(step.figures, {}).get("threshold")
                levels = (best, args.threshold, recipe.PSEUDO_LABELS.threshold)
                level = next(t for t in levels if t is not None) if data.background else -1
                found[-1].columns.append(Column(title, step, pipeline.path / step.name, level))
    return found
