"""Pairs of neighbouring pixels: their paths and their affinity.

IRN (Ahn et al., CVPR 2019): two pixels are alike unless a boundary lies between them.
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad


@lru_cache
def paths(radius: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Offsets of a pixel's neighbours within `radius`, and the pixels on the way to each.

    Returns offsets, int64 (n, 2), rows (dy, dx) sorted: the half plane dy > 0, or dy = 0 and
    dx > 0, with dy² + dx² < radius²; and one int64 (k, 2) array per offset: the pixels of the
    bounding box within distance < 1 of the straight line, far end first, source (0, 0) last.
    The arrays are cached and read-only. Raises ValueError for a radius under 2 (no neighbours).
    """
    if radius < 2:
        raise ValueError(f"the radius of the neighbourhood must be at least 2, not {radius}")
    offsets = [
        (dy, dx)
        for dy in range(radius)
        for dx in range(1 - radius, radius)
        if (dy, dx) > (0, 0) and dy**2 + dx**2 < radius**2
    ]
    table, lines = np.array(offsets), [np.array(_line(dy, dx)) for dy, dx in offsets]
    for array in (table, *lines):
        array.setflags(write=False)
    return table, lines


def _line(dy: int, dx: int) -> list[tuple[int, int]]:
    """Pixels within distance < 1 of the line from (0, 0) to (dy, dx), ends included."""
    pixels = [
        (y, x)
        for y in range(dy + 1)
        for x in range(min(dx, 0), max(dx, 0) + 1)
        # The distance is |cross product| / length; squared, it stays in integers.
        if (dy * x - dx * y) ** 2 < dy**2 + dx**2
    ]
    return sorted(pixels, key=lambda pixel: -pixel[0] - abs(pixel[1]))


def neighbour(maps: Tensor, offset: np.ndarray, radius: int) -> Tensor:
    """View of the pixel at `offset` (dy, dx) from every source pixel: (..., H, W) -> (..., h, w).

    Sources are the pixels whose whole half disc lies inside: h = H - reach, w = W - 2·reach with
    reach = radius - 1, or 0 in a smaller image; source (0, 0) is the pixel (0, reach).
    """
    (dy, dx), reach = offset.tolist(), radius - 1
    height, width = max(maps.shape[-2] - reach, 0), max(maps.shape[-1] - 2 * reach, 0)
    return maps[..., dy : dy + height, reach + dx : reach + dx + width]


class _PairAffinity(torch.autograd.Function):
    """1 - the maximum along each path, of the source pixels of `neighbour`.

    Plain autograd would keep all pixels of all paths (radius 10: 12 floats a pair on average);
    this keeps the place of the maximum, one byte a pair.
    """

    @staticmethod
    def forward(ctx, edge: Tensor, radius: int) -> Tensor:
        offsets, lines = paths(radius)
        size = neighbour(edge, offsets[0], radius).shape[1:]
        affinity = edge.new_empty(len(edge), len(offsets), *size)
        winner = torch.empty_like(affinity, dtype=torch.uint8) if ctx.needs_input_grad[0] else None
        for i, line in enumerate(lines):
            path = torch.stack([neighbour(edge, pixel, radius) for pixel in line])
            if winner is None:
                affinity[:, i] = path.amax(0)
            else:
                affinity[:, i], winner[:, i] = path.max(0)
        ctx.radius, ctx.shape = radius, edge.shape
        ctx.save_for_backward(winner)
        return affinity.neg_().add_(1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (winner,) = ctx.saved_tensors
        n, height, width = ctx.shape
        grid = torch.arange(height * width, device=grad.device).view(height, width)
        source = neighbour(grid, np.zeros(2, int), ctx.radius)
        lines = paths(ctx.radius)[1]
        # Path pixels as distances in the flattened map: one table, so one copy to the GPU.
        table = np.zeros((len(lines), max(map(len, lines))), int)
        for row, line in zip(table, lines, strict=True):
            row[: len(line)] = line @ (width, 1)
        steps = torch.from_numpy(table).to(grad.device, non_blocking=True)
        grad_edge = grad.new_zeros(n, height * width)
        for i in range(len(lines)):
            target = source + steps[i][winner[:, i].int()]
            grad_edge.scatter_add_(1, target.flatten(1), grad[:, i].flatten(1))
        return grad_edge.view(n, height, width).neg_(), None


def pair_affinity(edge: Tensor, radius: int) -> Tensor:
    """`affinity` of the source pixels of `neighbour`: (N, H, W) -> (N, n_offsets, h, w)."""
    return _PairAffinity.apply(edge, radius)


def affinity(edge: Tensor, radius: int) -> Tensor:
    """Affinity 1 - max(edge on the path) of every pixel and its neighbours.

    Edge (H, W) or (N, H, W), float32 or float64 in [0, 1], any size -> (n_offsets, H, W) or
    (N, n_offsets, H, W): [i, y, x] pairs the pixel (y, x) with (y + dy, x + dx), the i-th offset
    of `paths(radius)`. Outside the image the edge is 1, so pairs that leave it have affinity 0.
    Differentiable. Raises ValueError for other shapes.
    """
    if edge.ndim not in (2, 3):
        raise ValueError(f"an edge map is (H, W) or (N, H, W), not {tuple(edge.shape)}")
    reach = radius - 1
    batch = edge if edge.ndim == 3 else edge[None]
    pairs = pair_affinity(pad(batch, (reach, reach, 0, reach), value=1.0), radius)
    return pairs if edge.ndim == 3 else pairs[0]
