"""Score files: the CAMs, or the scores after a random walk, of one image at stride 4."""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from core.errors import InputError
from core.files import atomic_path
from core.recipe import CAM

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

STRIDE = CAM.stride  # score files, edges and the random walk live on this grid


def strided_size(size: Sequence[int]) -> tuple[int, int]:
    """(H, W) of an image -> (h, w) of its stride-4 maps, (side - 1) // 4 + 1."""
    return (size[0] - 1) // STRIDE + 1, (size[1] - 1) // STRIDE + 1


def upsample(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Stride-4 maps (K, h, w) -> (K, H, W): four times bilinear, then cut to the image."""
    if not len(maps):  # which interpolate refuses
        return maps.new_empty((0, *size), dtype=torch.float32)
    maps = F.interpolate(maps[None].float(), scale_factor=STRIDE, mode="bilinear")[0]
    return maps[:, : size[0], : size[1]]


def sample(maps: Tensor) -> Tensor:
    """The stride-4 maps from which `upsample` restores full-size maps >= 0 best.

    Float32 (..., H, W) -> (..., ceil(H/4), ceil(W/4)): the least-squares solution, clipped at 0 and
    at the maximum of the map, which the largest sample takes: else a peak between two samples would
    be lost (up to 11% of it), and a division by the maximum would scale the whole map.
    """
    rows, columns = (_inverse(side).to(maps.device, non_blocking=True) for side in maps.shape[-2:])
    with torch.autocast(maps.device.type, enabled=False):
        samples = (rows @ maps @ columns.T).clamp(min=0)
    top, highest = (each.amax((-2, -1), keepdim=True) for each in (maps, samples))
    return torch.where(samples >= highest.minimum(top), top, samples)


def otsu(scores: np.ndarray) -> float:
    """The threshold in [0, 1] that parts scores into two groups of least spread (Otsu, 1979).

    Scores of any shape in [0, 1]. No label is used: it rests on objects scoring unlike their
    surroundings. Where several thresholds are equally good, the middle one.
    """
    bins = 256  # a power of two: no score is rounded into another's
    counts = np.bincount((scores.ravel() * bins).astype(np.intp).clip(0, bins - 1), None, bins)
    edges = np.linspace(0, 1, bins + 1)
    centres = (edges[:-1] + edges[1:]) / 2
    below = counts.cumsum()
    above = below[-1] - below
    mass = (counts * centres).cumsum()
    with np.errstate(invalid="ignore", divide="ignore"):
        between = below * above * (mass / below - (mass[-1] - mass) / above) ** 2
    between = np.nan_to_num(between[:-1])
    best = np.flatnonzero(between >= between.max() * (1 - 1e-9))
    return float(edges[1:-1][best].mean())


@lru_cache(maxsize=64)
def _inverse(side: int) -> Tensor:
    """Pseudo-inverse of `upsample` along one side of an image, float32 (ceil(side/4), side)."""
    cells = torch.eye(strided_size((side, 1))[0])
    up = upsample(cells[..., None], (side, 1))[..., 0].double()  # a row for each cell's share
    return torch.linalg.solve(up @ up.T, up).float()


@dataclass
class Scores:
    """The CAMs (or random-walk scores) of one image."""

    classes: np.ndarray  # uint8 (K,), indices 1..C, ascending; K = 0 without any class
    cam: np.ndarray  # float16 (K, ceil(H/4), ceil(W/4))
    size: tuple[int, int]  # (H, W) of the image

    def class_table(self) -> np.ndarray:
        """uint8 (K + 1,): the class of each place in [background, *maps]."""
        return np.array([0, *self.classes], np.uint8)

    def save(self, path: Path) -> None:
        """Write `path` (.npz, no pickle, uncompressed: float16 noise does not compress).

        Raises InputError for scores that are not finite: here they are on the host, where looking
        at them makes nobody wait.
        """
        cam = np.asarray(self.cam, np.float16)
        if not np.isfinite(cam).all():
            raise InputError(f"{path}: the scores to write hold NaN; is the checkpoint damaged?")
        classes, size = np.asarray(self.classes, np.uint8), np.asarray(self.size, np.int64)
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, classes=classes, cam=cam, size=size)

    @staticmethod
    def load(path: Path, n_classes: int, size: Sequence[int] | None = None) -> "Scores":
        """Read a score file of `n_classes` C.

        Raises InputError for a file that is missing, damaged, of other classes, or not made from an
        image of `size` (H, W) where that is given.
        """
        remedy = "make the scores again"
        try:
            with zipfile.ZipFile(path) as archive:  # the header tells a decompression bomb
                if sum(entry.file_size for entry in archive.infolist()) > 1 << 30:
                    raise InputError(f"{path}: claims over 1 GiB of maps; {remedy}")
            with np.load(path, allow_pickle=False) as arrays:
                file = Scores(arrays["classes"], arrays["cam"], tuple(arrays["size"].tolist()))
            well_formed = (
                (file.classes.dtype, file.cam.dtype) == (np.uint8, np.float16)
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
            what = f"class {max(file.classes)} of {n_classes}: made with other classes"
            raise InputError(f"{path}: {what}; {remedy}")
        if size is not None and tuple(size) != file.size:
            (height, width), (now_high, now_wide) = file.size, size
            what = f"made from an image of {width}x{height}, it is {now_wide}x{now_high} now"
            raise InputError(f"{path}: {what}; {remedy}")
        return file
