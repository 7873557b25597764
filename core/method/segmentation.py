"""Multi-scale, flipped segmentation of images of equal size."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from core.data.transforms import normalize


def probabilities(
    network: Callable[[Tensor], Tensor], copies: Sequence[Tensor], size: tuple[int, int]
) -> Tensor:
    """Softmax of the logits summed over scales and flips (SPEC, "segmentation inference").

    Args:
        network: (N, 3, H, W) normalised images -> (N, n_labels, H, W) logits.
        copies: per scale, uint8 (B, 3, h, w), see `transforms.pyramid`. size: (H, W) of the images.

    Returns:
        float32 (B, n_labels, H, W).
    """
    total: Tensor | float = 0.0
    for images in copies:
        views = normalize(images)
        straight, mirrored = network(torch.cat([views, views.flip(-1)])).float().chunk(2)
        for each in (straight, mirrored.flip(-1)):
            total = total + F.interpolate(each, size, mode="bilinear")
    return total.softmax(1)
