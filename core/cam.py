"""Class activation maps: normalisation, multi-scale inference, and the file they are kept in."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from core.errors import InputError
from core.files import atomic_path
from core.transforms import normalize as normalize_images

SCALES = (0.5, 1.0, 1.5, 2.0)
STRIDE = 4  # CAM files, edges and the random walk live on this grid


def normalize(maps: Tensor) -> Tensor:
    """CAMs in training views: relu(relu(A) - 1e-5) / (max(relu(A)) + 1e-5), (N, C, h, w)."""
    maps = F.relu(maps)
    return F.relu(maps - 1e-5) / (maps.amax((-2, -1), keepdim=True) + 1e-5)


def strided_size(size: Sequence[int]) -> tuple[int, int]:
    """(H, W) of an image -> (h, w) of its stride-4 maps, (side - 1) // 4 + 1."""
    return (size[0] - 1) // STRIDE + 1, (size[1] - 1) // STRIDE + 1


def pyramid(image: Image.Image | np.ndarray, scales: Sequence[float] = SCALES) -> list[Tensor]:
    """Bicubic copies of an RGB image (PIL or uint8 (H, W, 3)): one uint8 (3, h, w) per scale."""
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    copies = []
    for scale in scales:
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        copy = image if scale == 1 else image.resize(size, Image.Resampling.BICUBIC)
        copies.append(torch.from_numpy(np.array(copy)).permute(2, 0, 1).contiguous())
    return copies


def sum_scales(
    network: Callable[[Tensor], Tensor], copies: Sequence[Tensor], size: tuple[int, int]
) -> Tensor:
    """Sum of the stride-4 CAMs over scales and flips (SPEC section 3, "CAM inference").

    Args:
        network: (N, 3, H, W) normalised images -> (N, C, h, w) class maps.
        copies: per scale, uint8 (B, 3, h, w) of B images of equal size, on the network's device.
        size: (H, W) of the images.

    Returns:
        float32 (B, C, ceil(H/4), ceil(W/4)), not yet normalised.
    """
    total: Tensor | float = 0.0
    for images in copies:
        views = normalize_images(images)
        maps = F.relu(network(torch.cat([views, views.flip(-1)])).float())
        straight, mirrored = maps.chunk(2)
        for each in (straight, mirrored.flip(-1)):
            total = total + F.interpolate(each, strided_size(size), mode="bilinear")
    return total


@torch.inference_mode()
def multi_scale(
    network: Callable[[Tensor], Tensor],
    image: Image.Image | np.ndarray,
    scales: Sequence[float] = SCALES,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Multi-scale, flipped CAMs of one RGB image, before normalisation.

    Args:
        network: any callable (N, 3, H, W) -> (N, C, h, w) on `device`.
        image: PIL image or uint8 (H, W, 3).

    Returns:
        float32 (C, ceil(H/4), ceil(W/4)), the sum over scales and flips.
    """
    size = (image.height, image.width) if isinstance(image, Image.Image) else image.shape[:2]
    copies = [copy[None].to(device) for copy in pyramid(image, scales)]
    return sum_scales(network, copies, size)[0]


def of_classes(sums: Tensor, classes: Sequence[int]) -> Tensor:
    """Keep the image's classes (VOC indices 1..C) of (C, h, w), each divided by maximum + 1e-5."""
    maps = sums[[c - 1 for c in classes]]
    return maps / (maps.amax((-2, -1), keepdim=True) + 1e-5)


def upsample(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Stride-4 maps (K, h, w) -> (K, H, W): four times bilinear, then cut to the image."""
    maps = F.interpolate(maps[None].float(), scale_factor=STRIDE, mode="bilinear")[0]
    return maps[:, : size[0], : size[1]]


def otsu(scores: np.ndarray, bins: int = 256) -> float:
    """The threshold in [0, 1] that parts scores into two groups of least spread (Otsu, 1979).

    Scores of any shape in [0, 1]. No label is used: it rests on objects scoring unlike their
    surroundings. Where several thresholds are equally good, the middle one.
    """
    counts, edges = np.histogram(scores, bins, (0, 1))
    centres = (edges[:-1] + edges[1:]) / 2
    below = counts.cumsum()
    above = below[-1] - below
    mass = (counts * centres).cumsum()
    with np.errstate(invalid="ignore", divide="ignore"):
        between = below * above * (mass / below - (mass[-1] - mass) / above) ** 2
    between = np.nan_to_num(between[:-1])
    best = np.flatnonzero(between >= between.max() * (1 - 1e-9))
    return float(edges[1:-1][best].mean())


@dataclass
class CamFile:
    """The CAMs (or random-walk scores) of one image.

    Attributes:
        classes: uint8 (K,), VOC indices 1..C, ascending. cam: float16 (K, ceil(H/4), ceil(W/4)).
        size: (H, W) of the image.
    """

    classes: np.ndarray
    cam: np.ndarray
    size: tuple[int, int]

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
    def load(path: Path, n_classes: int, size: Sequence[int] | None = None) -> CamFile:
        """Read and check a CAM file.

        Args:
            n_classes: C. size: the (H, W) of the image, checked when given.

        Raises:
            InputError: missing, damaged, of other classes or made from another image size.
        """
        remedy = "make the CAMs anew"
        try:
            with zipfile.ZipFile(path) as archive:  # the header tells a decompression bomb
                if sum(entry.file_size for entry in archive.infolist()) > 1 << 30:
                    raise InputError(f"{path}: claims over 1 GiB of maps; {remedy}")
            with np.load(path, allow_pickle=False) as arrays:
                file = CamFile(arrays["classes"], arrays["cam"], tuple(arrays["size"].tolist()))
            well_formed = (
                file.classes.dtype == np.uint8
                and file.cam.dtype == np.float16
                and len(file.size) == 2
                and all(isinstance(side, int) and side > 0 for side in file.size)
                and file.cam.shape == (len(file.classes), *strided_size(file.size))
                and len(file.classes) > 0
                and bool(np.isfinite(file.cam).all())
            )
        except FileNotFoundError:
            raise InputError(f"{path}: no CAM for this id; {remedy}") from None
        except InputError:
            raise
        except Exception:  # what a damaged file raises depends on NumPy, zipfile and the tokenizer
            raise InputError(f"{path}: damaged or not a CAM file; {remedy}") from None
        if not well_formed:
            raise InputError(f"{path}: not a CAM file of this project; {remedy}")
        if file.classes.min() < 1 or file.classes.max() > n_classes:
            raise InputError(
                f"{path}: class {file.classes.max()} of {n_classes}: made with other "
                f"classes; {remedy}"
            )
        if size is not None and tuple(size) != file.size:
            raise InputError(
                f"{path}: made from an image of {file.size[1]}x{file.size[0]}, "
                f"it is {size[1]}x{size[0]} now; {remedy}"
            )
        return file
