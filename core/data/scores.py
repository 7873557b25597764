"""Score files: the CAMs, or the scores after a random walk, of one image at stride 4."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from core.errors import InputError
from core.files import atomic_path

STRIDE = 4  # score files, edges and the random walk live on this grid


def strided_size(size: Sequence[int]) -> tuple[int, int]:
    """(H, W) of an image -> (h, w) of its stride-4 maps, (side - 1) // 4 + 1."""
    return (size[0] - 1) // STRIDE + 1, (size[1] - 1) // STRIDE + 1


def upsample(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Stride-4 maps (K, h, w) -> (K, H, W): four times bilinear, then cut to the image."""
    if not len(maps):
        return maps.new_zeros(0, *size)
    maps = F.interpolate(maps[None].float(), scale_factor=STRIDE, mode="bilinear")[0]
    return maps[:, : size[0], : size[1]]


@dataclass
class Scores:
    """The CAMs (or random-walk scores) of one image.

    Attributes:
        classes: uint8 (K,), VOC indices 1..C, ascending. cam: float16 (K, ceil(H/4), ceil(W/4)).
        size: (H, W) of the image.
    """

    classes: np.ndarray
    cam: np.ndarray
    size: tuple[int, int]

    def class_table(self) -> np.ndarray:
        """uint8 (K + 1,): the class of each place in [background, *maps]."""
        return np.array([0, *self.classes], np.uint8)

    def save(self, path: Path) -> None:
        """Write `path` (.npz, no pickle, uncompressed: float16 noise does not compress)."""
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez(
                file,
                classes=np.asarray(self.classes, np.uint8),
                cam=np.asarray(self.cam, np.float16),
                size=np.asarray(self.size, np.int64),
            )

    @staticmethod
    def load(path: Path, n_classes: int, size: Sequence[int] | None = None) -> Scores:
        """Read and check a score file.

        Args:
            n_classes: C. size: the (H, W) of the image, checked when given.

        Raises:
            InputError: missing, damaged, of other classes or made from another image size.
        """
        remedy = "make the scores again"
        try:
            with zipfile.ZipFile(path) as archive:  # the header tells a decompression bomb
                if sum(entry.file_size for entry in archive.infolist()) > 1 << 30:
                    raise InputError(f"{path}: claims over 1 GiB of maps; {remedy}")
            with np.load(path, allow_pickle=False) as arrays:
                file = Scores(arrays["classes"], arrays["cam"], tuple(arrays["size"].tolist()))
            well_formed = (
                file.classes.dtype == np.uint8
                and file.cam.dtype == np.float16
                and len(file.size) == 2
                and all(isinstance(side, int) and side > 0 for side in file.size)
                and file.cam.shape == (len(file.classes), *strided_size(file.size))
                and bool(np.isfinite(file.cam).all())
            )
        except FileNotFoundError:
            raise InputError(f"{path}: no scores for this id; {remedy}") from None
        except InputError:
            raise
        except Exception:  # what a damaged file raises depends on NumPy, zipfile and the tokenizer
            raise InputError(f"{path}: damaged or not a score file; {remedy}") from None
        if not well_formed:
            raise InputError(f"{path}: not a score file of this project; {remedy}")
        if any(not 1 <= each <= n_classes for each in file.classes):
            raise InputError(
                f"{path}: class {max(file.classes)} of {n_classes}: made with other "
                f"classes; {remedy}"
            )
        if size is not None and tuple(size) != file.size:
            raise InputError(
                f"{path}: made from an image of {file.size[1]}x{file.size[0]}, "
                f"it is {size[1]}x{size[0]} now; {remedy}"
            )
        return file
