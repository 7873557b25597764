"""Class activation maps: normalisation, multi-scale inference, thresholds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from core.data.scores import sample, strided_size, upsample
from core.data.transforms import SCALES, pyramid
from core.data.transforms import normalize as normalize_images
from core.method import passes
from core.recipe import CAM


def normalize(maps: Tensor) -> Tensor:
    """CAMs in training views: relu(relu(A) - 1e-5) / (max(relu(A)) + 1e-5), (N, C, h, w)."""
    maps = F.relu(maps)
    return F.relu(maps - CAM.epsilon) / (maps.amax((-2, -1), keepdim=True) + CAM.epsilon)


def sum_scales(
    network: Callable[[Tensor], Tensor],
    copies: Sequence[Tensor],
    size: tuple[int, int],
    high_res: bool = False,
) -> Tensor:
    """Sum of the CAMs over scales and flips, not yet normalised.

    Args:
        network, copies: see `passes.outputs`; the maps are class maps at stride 16.
        size: (H, W) of the images.
        high_res: of the two sums that the authors' code keeps, not the one at stride 4 but
            `hr_cam`, at the size of the image, of which these are the samples (`scores.sample`).
            Upsampled and divided by its maximum, the map is off by .001 on average, .13 at most
            where a slope breaks, and 99.7% of the pixels keep their label at thresholds from .05
            to .4 (photographs, their colours in place of class maps).

    Returns:
        float32 (B, C, ceil(H/4), ceil(W/4)).
    """
    multiple = CAM.high_res_multiple
    grid = [-(-side // multiple) * multiple for side in size] if high_res else strided_size(size)
    total = torch.zeros(())
    for pair in passes.outputs(network, copies):
        for maps in pair:
            total = total + F.interpolate(F.relu(maps), grid, mode="bilinear")
    return sample(total[..., : size[0], : size[1]]) if high_res else total


@torch.inference_mode()
def multi_scale(
    network: Callable[[Tensor], Tensor],
    image: Image.Image | np.ndarray,
    scales: Sequence[float] = SCALES,
    device: torch.device | str = "cpu",
    high_res: bool = False,
) -> Tensor:
    """Multi-scale, flipped CAMs of one RGB image, before normalisation.

    Args:
        network: any callable (N, 3, H, W) -> (N, C, h, w) on `device`.
        image: PIL image or uint8 (H, W, 3).
        high_res: see `sum_scales`.

    Returns:
        float32 (C, ceil(H/4), ceil(W/4)), the sum over scales and flips.
    """
    size = (image.height, image.width) if isinstance(image, Image.Image) else image.shape[:2]
    copies = [copy[None].to(device) for copy in pyramid(image, scales)]
    return sum_scales(network, copies, size, high_res)[0]


def of_classes(sums: Tensor, classes: Sequence[int]) -> Tensor:
    """Keep the image's classes (indices 1..C; or none) of (C, h, w), each by its maximum + 1e-5."""
    # A list as index would be a blocking copy to the GPU.
    wanted = torch.tensor(classes, dtype=torch.long) - 1
    maps = sums.index_select(0, wanted.to(sums.device, non_blocking=True))
    return maps / (maps.amax((-2, -1), keepdim=True) + CAM.epsilon)


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


def label_map(maps: Tensor, threshold: float, classes: Sequence[int] | None = None) -> Tensor:
    """The best class of each pixel against a constant background score, which wins ties.

    Args:
        maps: scores (K, H, W), floating; K = 0 gives a map that is all background.
        threshold: score of the background.
        classes: index of each of the K classes; None: 1..K, as the dense CRF wants them.

    Returns:
        uint8 (H, W) on the device of the maps, 0 = background.
    """
    background = maps.new_full((1, *maps.shape[1:]), threshold)
    best = torch.cat([background, maps]).argmax(0)
    if classes is None:
        return best.to(torch.uint8)
    table = torch.tensor([0, *classes], dtype=torch.uint8)
    return table.to(maps.device, non_blocking=True)[best]


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
