"""Class activation maps: normalisation, multi-scale inference, thresholds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from core.data.scores import strided_size, upsample
from core.data.transforms import SCALES, pyramid
from core.data.transforms import normalize as normalize_images


def normalize(maps: Tensor) -> Tensor:
    """CAMs in training views: relu(relu(A) - 1e-5) / (max(relu(A)) + 1e-5), (N, C, h, w)."""
    maps = F.relu(maps)
    return F.relu(maps - 1e-5) / (maps.amax((-2, -1), keepdim=True) + 1e-5)


def sum_scales(
    network: Callable[[Tensor], Tensor],
    copies: Sequence[Tensor],
    size: tuple[int, int],
    high_res=False,
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


def seen(
    network: Callable[[Tensor], Tensor],
    image: np.ndarray,
    scales: Sequence[float],
    threshold: float,
    device: torch.device | str = "cpu",
) -> tuple[list[int], Tensor]:
    """The classes that a classifier sees in an image without labels, and their CAMs.

    Args:
        image: uint8 (H, W, 3). threshold: probability of a class that is seen; where none reaches
            it, the likeliest one is.

    Returns:
        Class indices 1..C, ascending; float32 (K, H, W) in 0..1.
    """
    views = normalize_images(torch.from_numpy(image).permute(2, 0, 1)[None].to(device))
    logits = network(torch.cat([views, views.flip(-1)])).float().mean((0, 2, 3))
    classes = (torch.nonzero(logits.sigmoid() >= threshold).flatten() + 1).tolist()
    classes = classes or [int(logits.argmax()) + 1]
    sums = multi_scale(network, image, scales, device)
    return classes, upsample(of_classes(sums, classes), image.shape[:2])


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


def label_map(maps: Tensor, threshold: float, classes: Sequence[int]) -> Tensor:
    table = torch.tensor([0, *classes], dtype=torch.uint8)
    return table[torch.cat([maps.new_full((1, *maps.shape[1:]), threshold), maps]).argmax(0).cpu()]
