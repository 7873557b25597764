"""core.method.affinity against the goldens, plain autograd and gradcheck."""

from __future__ import annotations

from core.method.affinity import affinity, paths

import numpy as np
import pytest
import torch
from conftest import golden


def plain_affinity(edge: torch.Tensor, radius: int) -> torch.Tensor:
    """The definition with ordinary operations: edge (H, W) on a canvas of ones."""
    (height, width), r = edge.shape, radius
    canvas = torch.nn.functional.pad(edge, (r, r, r, r), value=1.0)
    return torch.stack(
        [
            1 - torch.stack([canvas[r + y :, r + x :][:height, :width] for y, x in line]).amax(0)
            for line in paths(radius)[1]
        ]
    )


@pytest.mark.parametrize("radius", [5, 10])
def test_golden(radius):
    g = golden(f"affinity_r{radius}")
    offsets, lines = paths(radius)
    np.testing.assert_array_equal(offsets, g["offsets_dy_dx"])
    for line, expected in zip(lines, g["path_pixels_pad127"], strict=True):
        np.testing.assert_array_equal(line, expected[expected[:, 0] != 127])
    got = affinity(torch.from_numpy(g["edge"]), radius)
    np.testing.assert_allclose(got, g["affinity"], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("radius", [2, 3, 7])
def test_paths(radius):
    offsets, lines = paths(radius)
    square = {(y, x) for y in range(-radius, radius + 1) for x in range(-radius, radius + 1)}
    disc = {(y, x) for y, x in square if 0 < y * y + x * x < radius**2}
    half = {tuple(offset) for offset in offsets.tolist()}
    assert half | {(-y, -x) for y, x in half} == disc and 2 * len(half) == len(disc)
    for offset, line in zip(offsets.tolist(), lines, strict=True):
        assert line[0].tolist() == offset and line[-1].tolist() == [0, 0]
    assert not offsets.flags.writeable


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (40, 3), (9, 13)])
def test_any_size_equals_the_definition(size):
    edge = torch.rand((2, *size), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    got = affinity(edge, 10)
    assert got.shape == (2, 152, *size)
    for one, pairs in zip(edge, got, strict=True):
        torch.testing.assert_close(pairs, plain_affinity(one, 10), rtol=0, atol=0)
        assert torch.equal(affinity(one, 10), pairs)


def test_gradient_equals_plain_autograd():
    generator = torch.Generator().manual_seed(0)
    edge = torch.rand(9, 12, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.rand(34, 9, 12, generator=generator, dtype=torch.float64)
    (got,) = torch.autograd.grad((affinity(edge, 5) * weight).sum(), edge)
    (expected,) = torch.autograd.grad((plain_affinity(edge, 5) * weight).sum(), edge)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    small = edge.detach()[:5, :6].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda e: affinity(e, 4), small)


def test_bad_arguments_are_refused():
    for call in (
        lambda: paths(1),
        lambda: affinity(torch.zeros(1, 1, 4, 4), 5),
    ):
        with pytest.raises(ValueError):
            call()
