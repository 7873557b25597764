"""The labels a boundary network learns from, and the boundaries it finds (IRN, Ahn et al. 2019)."""

from collections.abc import Callable, Sequence

from core.data.images import IGNORE
from core.data.scores import STRIDE, strided_size
from core.data.transforms import normalize
from core.recipe import RANDOM_WALK

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad


def confident_labels(foreground_labels: np.ndarray, background_labels: np.ndarray) -> np.ndarray:
    """Labels for the affinity loss, from a strict and a generous labelling of one image.

    Both integer (H, W), 0 = background. `foreground_labels` were made against a high background
    score: a class there is certain. `background_labels` were made against a low one: background
    there is certain. Returns uint8 (H, W): the class where the first says a class, 0 where both
    say background, 255 (ignore) elsewhere. Raises ValueError where the shapes differ.
    """
    shapes = foreground_labels.shape, background_labels.shape
    if shapes[0] != shapes[1]:
        raise ValueError(f"label maps differ in shape: {shapes[0]}, {shapes[1]}")
    unsure = np.where(background_labels == 0, 0, IGNORE)
    return np.where(foreground_labels > 0, foreground_labels, unsure).astype(np.uint8)


def at_edges(labels: Tensor) -> Tensor:
    """Label maps at the pixels of the edge map: (..., H, W) -> (..., H/4, W/4), a view.

    Pixel i is the pixel 4i + 2, as in PIL's nearest resize. Raises ValueError for sides that 4
    does not divide.
    """
    if labels.shape[-2] % STRIDE or labels.shape[-1] % STRIDE:
        raise ValueError(f"the sides of label maps {tuple(labels.shape)} are no multiples of 4")
    return labels[..., STRIDE // 2 :: STRIDE, STRIDE // 2 :: STRIDE]


def padded_size(size: Sequence[int], pad_to: int = RANDOM_WALK.pad_to) -> tuple[int, int]:
    """(H, W) at which the boundary network sees an image of a size (H, W)."""
    multiple = RANDOM_WALK.pad_multiple
    height, width = (pad_to if side <= pad_to else side + -side % multiple for side in size)
    return height, width


@torch.no_grad()
def edge_map(
    network: Callable[[Tensor], Tensor], images: Tensor, pad_to: int = RANDOM_WALK.pad_to
) -> Tensor:
    """Boundary probabilities of images, their logits averaged with their mirror images'.

    Network: (2 B, 3, H', W') normalised images -> edge logits (2 B, h, w) at stride 4. Images:
    uint8 RGB (3, H, W) or (B, 3, H, W) on its device. After the normalisation, right and bottom are
    padded with 0 up to `pad_to`, where larger to the next multiple of 32: GroupNorm then sees what
    it saw in training. Returns float32 (ceil(H/4), ceil(W/4)) or (B, ...) in [0, 1].
    """
    height, width = strided_size(images.shape[-2:])
    padded = padded_size(images.shape[-2:], pad_to)
    bottom, right = (p - side for p, side in zip(padded, images.shape[-2:], strict=True))
    views = normalize(images if images.ndim == 4 else images[None])
    views = pad(torch.cat([views, views.flip(-1)]), (0, right, 0, bottom))
    straight, mirrored = network(views)[:, :height, :width].float().chunk(2)
    edges = torch.sigmoid(straight / 2 + mirrored.flip(-1) / 2)
    return edges if images.ndim == 4 else edges[0]
