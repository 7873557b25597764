"""The puzzle module: cut a batch into tiles, put maps of the tiles back together.

Puzzle-CAM (arXiv 2101.11253), section "The puzzle module". Neither direction has a parameter.
"""

from core.recipe import CLASSIFICATION

import torch
from torch import Tensor


def tile(images: Tensor, grid: int = CLASSIFICATION.grid) -> Tensor:
    """Cut images into grid x grid tiles: (N, C, H, W) -> (grid²·N, C, H/grid, W/grid).

    The tiles do not overlap. Piece-major: the top-left tiles of all images first, then the next
    piece in reading order. The memory format is kept. Raises ValueError where `grid` does not
    divide H and W.
    """
    if images.ndim != 4 or grid < 1 or images.shape[2] % grid or images.shape[3] % grid:
        raise ValueError(f"cannot cut images of shape {tuple(images.shape)} into {grid}x{grid}")
    rows = images.chunk(grid, dim=2)
    return torch.cat([piece for row in rows for piece in row.chunk(grid, dim=3)])


def merge(tiles: Tensor, grid: int = CLASSIFICATION.grid) -> Tensor:
    """The inverse of `tile`: (grid²·N, C, h, w) -> (N, C, grid·h, grid·w).

    h and w are free: what is merged are the class maps of the tiles. Raises ValueError where
    grid² does not divide the batch.
    """
    if tiles.ndim != 4 or grid < 1 or tiles.shape[0] % grid**2:
        raise ValueError(f"cannot merge tiles of shape {tuple(tiles.shape)} into {grid}x{grid}")
    pieces = tiles.chunk(grid**2)
    rows = [torch.cat(pieces[i : i + grid], dim=3) for i in range(0, grid**2, grid)]
    return torch.cat(rows, dim=2)
