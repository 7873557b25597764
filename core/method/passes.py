"""The passes of multi-scale inference: every scale, each with its mirror image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from core.data.transforms import normalize


def outputs(
    network: Callable[[Tensor], Tensor], copies: Sequence[Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """What a network gives images at each scale, and their mirror images, turned back.

    Args:
        network: (N, 3, h, w) normalised images -> (N, C, h', w') maps, at any stride.
        copies: per scale, uint8 (B, 3, h, w) of B images of equal size, on the network's device;
            see `transforms.pyramid`.

    Yields:
        Two float32 (B, C, h', w'), of the images and of the mirror images.
    """
    for images in copies:
        views = normalize(images)
        straight, mirrored = network(torch.cat([views, views.flip(-1)])).float().chunk(2)
        yield straight, mirrored.flip(-1)
