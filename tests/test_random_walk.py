"""core.method.random_walk against the goldens and the dense matrix, squared."""

from __future__ import annotations

import subprocess
import sys

from core.method.affinity import affinity, paths
from core.method.random_walk import random_walk, rescale, transition

import numpy as np
import pytest
import torch
from conftest import REPO, golden


def example(size: tuple[int, int], n_classes: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    cam = torch.rand((n_classes, *size), generator=generator, dtype=torch.float64)
    edge = torch.rand(size, generator=generator, dtype=torch.float64)
    return cam, edge


def dense_walk(cam, edge, radius: int, beta: float, log2_steps: int) -> torch.Tensor:
    """As in IRN: an N x N matrix, its columns normalised, squared log2_steps times."""
    height, width = edge.shape
    matrix = torch.eye(height * width, dtype=edge.dtype)
    for (dy, dx), pairs in zip(paths(radius)[0], affinity(edge, radius), strict=True):
        for y in range(height):
            for x in range(width):
                if y + dy < height and 0 <= x + dx < width:
                    i, j = y * width + x, (y + dy) * width + x + dx
                    matrix[i, j] = matrix[j, i] = pairs[y, x] ** beta
    matrix /= matrix.sum(0)
    for _ in range(log2_steps):
        matrix = matrix @ matrix
    return ((cam * (1 - edge)).flatten(1) @ matrix).reshape(cam.shape)


@pytest.mark.parametrize("size", ["11x14", "24x31"])
def test_golden(size):
    g = golden(f"random_walk_{size}")
    for beta, log2_steps in ((10, 8), (8, 3)):
        expected = g[f"rw_beta{beta}_2pow{log2_steps}"]
        got = random_walk(g["cam"], g["edge"], 5, beta, log2_steps)
        np.testing.assert_allclose(got, expected, rtol=1e-9)
        single = random_walk(g["cam"].astype("f4"), g["edge"].astype("f4"), 5, beta, log2_steps)
        assert single.dtype == torch.float32
        np.testing.assert_allclose(single, expected, rtol=5e-4)


@pytest.mark.parametrize("size", [(1, 1), (1, 12), (3, 2), (9, 11)])
@pytest.mark.parametrize("radius", [2, 5])
def test_equals_the_dense_matrix(size, radius):
    for n_classes in (1, 3):
        cam, edge = example(size, n_classes)
        got = random_walk(cam, edge, radius)
        assert got.is_contiguous()
        torch.testing.assert_close(got, dense_walk(cam, edge, radius, 10, 8), rtol=1e-9, atol=0)


def test_a_wall_keeps_scores_on_their_side():
    edge = torch.zeros(12, 16, dtype=torch.float64)
    edge[:, 8] = 1
    cam = torch.zeros(1, 12, 16, dtype=torch.float64)
    cam[0, :, :4] = 1
    scores = random_walk(cam, edge, log2_steps=10)[0]
    assert (scores[:, :8] > 0).all() and (scores[:, 8:] == 0).all()


def test_rescale_divides_by_the_global_maximum_at_image_size():
    scores = torch.zeros(2, 4, 5)
    scores[0, 3, 4], scores[1, 1, 2] = 8, 1
    # The pixel (12, 16) is the last of the image: 5/8 of the way to the sample (3, 4), each way.
    got = rescale(scores, (13, 17))
    assert got[1, 1, 2] != got[0, 3, 4], "each class was divided by a maximum of its own"
    torch.testing.assert_close(got, scores / (8 * 0.625**2))


def test_without_scores_nothing_is_walked_or_rescaled():
    cam, edge = example((4, 5))
    assert random_walk(cam[:0], edge).shape == (0, 4, 5)
    assert rescale(cam[:0], (16, 20)).shape == (0, 4, 5)
    assert torch.equal(rescale(0 * cam, (16, 20)), 0 * cam)  # no 0 / 0


def test_transition_is_a_valid_matrix():
    matrix = transition(example((9, 11))[1], 5, 10.0)
    rows, columns, values = matrix.crow_indices(), matrix.col_indices(), matrix.values()
    torch.sparse_csr_tensor(rows, columns, values, matrix.shape, check_invariants=True)
    assert (rows.dtype, columns.dtype) == (torch.int32, torch.int32)
    assert rows.diff().max() == 69
    torch.testing.assert_close(matrix.to_dense().sum(1), torch.ones(99, dtype=torch.float64))


@pytest.mark.parametrize(
    "change",
    [
        lambda cam, edge: (cam, edge * 1.5),
        lambda cam, edge: (cam[:0], edge * 1.5),
        lambda cam, edge: (cam, edge - 0.5),
        lambda cam, edge: (cam, edge * np.nan),
        lambda cam, edge: (cam / 0, edge),
        lambda cam, edge: (cam, edge[:-1]),
        lambda cam, edge: (cam[0], edge),
        lambda cam, edge: (cam[:, :0], edge[:0]),
        lambda cam, edge: (cam.half(), edge),
    ],
)
def test_bad_input_is_refused(change):
    with pytest.raises(ValueError, match="random walk"):
        random_walk(*change(*example((4, 5))))


MEMORY = """
import resource, torch
from core.method.random_walk import random_walk
torch.set_num_threads(1)
random_walk(torch.rand(3, 9, 9).double(), torch.rand(9, 9).double())
kilobytes = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
cam, edge = torch.rand(3, 225, 300).double(), torch.rand(225, 300).double()
base = kilobytes()
random_walk(cam, edge, log2_steps=1)
print((kilobytes() - base) / 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux only")
def test_memory_of_a_large_image():
    """1200 x 900 pixels at stride 4; the dense matrix would take 34 GiB."""
    command = [sys.executable, "-c", MEMORY]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 200
