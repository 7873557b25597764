"""The passes of multi-scale inference: every scale, each with its mirror image."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from core.data.transforms import normalize

Network = Callable[[Tensor], Tensor]


def summed(
    network: Network,
    copies: Sequence[Tensor],
    size: Sequence[int],
    activation: Network | None = None,
) -> Tensor:
    """The sum of what a network gives images at each scale, and their mirror images, turned back.

    Args:
        network: (N, 3, h, w) normalised images -> (N, C, h', w') maps, at any stride.
        copies: per scale, uint8 (B, 3, h, w) of B images of equal size, on the network's device;
            see `transforms.pyramid`.
        size: (H, W), to which the maps are resized. activation: is applied to them before.

    Returns:
        float32 (B, C, H, W).
    """
    total = torch.zeros(())
    for images in copies:
        views = normalize(images)
        straight, mirrored = network(torch.cat([views, views.flip(-1)])).float().chunk(2)
        for maps in (straight, mirrored.flip(-1)):
            maps = maps if activation is None else activation(maps)
            total = total + F.interpolate(maps, size, mode="bilinear")
    return total
