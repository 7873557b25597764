"""core.method.puzzle against the golden and by its inverse."""

from __future__ import annotations

from core.method.puzzle import merge, tile

import numpy as np
import pytest
import torch
from conftest import golden


def test_golden():
    g = golden("puzzle")
    tiles = tile(torch.from_numpy(g["x"]))
    np.testing.assert_array_equal(tiles, g["tiles_2x2"])
    np.testing.assert_array_equal(merge(tiles), g["merged"])
    np.testing.assert_array_equal(tile(torch.from_numpy(g["x4"]), grid=4), g["tiles_4x4"])


@pytest.mark.parametrize("grid", [1, 2, 3, 4])
def test_merge_undoes_tile(grid):
    images = torch.randn(2, 3, 5 * grid, 7 * grid, generator=torch.Generator().manual_seed(0))
    tiles = tile(images, grid)
    assert tiles.shape == (2 * grid**2, 3, 5, 7)
    # The second image's tile in the last row, first column.
    torch.testing.assert_close(tiles[2 * grid * (grid - 1) + 1], images[1, :, -5:, :7])
    assert torch.equal(merge(tiles, grid), images)


def test_merge_takes_maps_of_another_size():
    """Tiles of 32 pixels have maps of 2: the merged map has 4, the piece of each image in place."""
    maps = torch.arange(8.0).view(8, 1, 1, 1).expand(8, 5, 2, 2)
    expected = torch.tensor([[1.0, 1, 3, 3], [1, 1, 3, 3], [5, 5, 7, 7], [5, 5, 7, 7]])
    assert torch.equal(merge(maps)[1], expected.expand(5, 4, 4))


def test_channels_last_is_kept():
    images = torch.zeros(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    tiles = tile(images)
    assert tiles.is_contiguous(memory_format=torch.channels_last)
    assert merge(tiles).is_contiguous(memory_format=torch.channels_last)


def test_gradient_goes_back_to_its_place():
    images = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x: merge(tile(x) * torch.arange(8).view(8, 1, 1, 1)), images
    )


@pytest.mark.parametrize(("shape", "grid"), [((1, 3, 7, 8), 2), ((1, 3, 8, 7), 2), ((3, 8, 8), 2)])
def test_what_does_not_divide_is_refused(shape, grid):
    with pytest.raises(ValueError, match="cannot cut"):
        tile(torch.zeros(shape), grid)
    with pytest.raises(ValueError, match="cannot merge"):
        merge(torch.zeros(6, 1, 2, 2), grid)
