"""Multi-scale, flipped segmentation of images of equal size."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor

from core.method import passes


def probabilities(
    network: Callable[[Tensor], Tensor], copies: Sequence[Tensor], size: tuple[int, int]
) -> Tensor:
    """Softmax of the logits, summed over scales and flips.

    Network and copies as in `passes.outputs`, the maps being logits; size: (H, W) of the images.
    Returns float32 (B, n_labels, H, W).
    """
    total: Tensor | float = 0.0
    for pair in passes.outputs(network, copies):
        for logits in pair:
            total = total + F.interpolate(logits, size, mode="bilinear")
    return total.softmax(1)
