"""core.method.losses against the goldens and a naive loop over pairs."""

from __future__ import annotations

import math

from core.method import losses
from core.method.affinity import paths

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import golden


def test_golden():
    g = {name: torch.from_numpy(array) for name, array in golden("losses").items()}
    maps, merged, labels = g["maps"], g["merged"], g["labels"]
    for got, expected in (
        (losses.classification(maps.mean((2, 3)), labels), g["cls"]),
        (losses.classification(merged.mean((2, 3)), labels), g["p_cls"]),
        (losses.reconstruction(maps, merged, labels), g["re_masked"]),
        (losses.reconstruction(maps, merged, labels, masked=False), g["re_plain"]),
    ):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("grid", [2, 3])
@pytest.mark.parametrize("relative", [False, True])
def test_reconstruction_without_seams_and_relative(grid, relative):
    """Cell by cell: those with a neighbour in another tile are left out of sum and mean."""
    rng = np.random.default_rng(0)
    maps, merged = rng.normal(0, 3, (2, 2, 4, 12, 12)).astype(np.float32)
    labels = np.array([[1, 0, 1, 0], [0, 1, 1, 0]], np.float32)
    kept = []
    for y in range(12):
        for x in range(12):
            near = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
            inside = [(j, i) for j, i in near if 0 <= j < 12 and 0 <= i < 12]
            cell = 12 // grid
            if all((j // cell, i // cell) == (y // cell, x // cell) for j, i in inside):
                kept.append((y, x))
    total = 0.0
    for n in range(2):
        for c in range(4):
            height = max(1.0, maps[n, c].max()) if relative else 1.0
            total += sum(labels[n, c] * abs(maps[n, c, y, x] - merged[n, c, y, x]) / height
                         for y, x in kept)  # fmt: skip
    got = losses.reconstruction(
        *map(torch.from_numpy, (maps, merged, labels)), seams=grid, relative=relative
    )
    assert got.item() == pytest.approx(total / (8 * len(kept)), rel=1e-5)


def test_lower_maps_agree_no_better_where_the_loss_is_relative():
    """The gradient of the scale is not taken, and halving both maps changes nothing."""
    a, b = 4 + torch.rand(2, 1, 3, 8, 8)
    labels = torch.ones(1, 3)
    whole, half = (losses.reconstruction(f * a, f * b, labels, relative=True) for f in (1, 0.5))
    torch.testing.assert_close(whole, half)
    assert losses.reconstruction(0.5 * a, 0.5 * b, labels) < 0.6 * losses.reconstruction(
        a, b, labels
    )


def test_alpha_golden():
    g = golden("alpha_ramp")
    got = [losses.alpha(int(step), int(g["max_step"])) for step in g["step"]]
    np.testing.assert_allclose(got, g["alpha"], rtol=1e-12)


def test_alpha_without_a_ramp_is_the_peak():
    assert losses.alpha(0, 10, peak=3.0, ramp=0.0) == 3.0
    assert losses.alpha(5, 10, peak=3.0, ramp=1.0) == 1.5
    with pytest.raises(ValueError):
        losses.alpha(0, 0)


def test_affinity_golden():
    g = golden("affinity_loss")
    edge, label = torch.from_numpy(g["edge"]), torch.from_numpy(g["label"])
    got = losses.affinity(edge, label, int(g["radius"]))
    torch.testing.assert_close(got.item(), float(g["loss"]), rtol=1e-5, atol=0)


def naive_affinity(edge: np.ndarray, label: np.ndarray, radius: int) -> float:
    """The definition, one pair at a time: sources whose half disc lies inside the image."""
    terms: dict[str, list[float]] = {"bgpos": [], "fgpos": [], "neg": []}
    n, height, width = edge.shape
    for k in range(n):
        for y in range(height - radius + 1):
            for x in range(radius - 1, width - radius + 1):
                for (dy, dx), line in zip(*paths(radius), strict=True):
                    a, b = label[k, y, x], label[k, y + dy, x + dx]
                    if a == 255 or b == 255:
                        continue
                    alike = 1 - max(edge[k, y + i, x + j] for i, j in line)
                    if a != b:
                        terms["neg"].append(-math.log(1 + 1e-5 - alike))
                    else:
                        terms["fgpos" if a else "bgpos"].append(-math.log(alike + 1e-5))
    bgpos, fgpos, neg = (np.mean(values) if values else 0.0 for values in terms.values())
    return (bgpos / 2 + fgpos / 2 + neg) / 2


@pytest.mark.parametrize("labels", [(0, 1, 2, 255), (0,), (3,), (0, 7), (255,)])
def test_affinity_equals_the_naive_loop(labels):
    """Over a batch the means run over all pairs; a set without pairs contributes 0, never NaN."""
    rng = np.random.default_rng(len(labels))
    edge, label = rng.random((2, 10, 13)), rng.choice(labels, (2, 10, 13))
    tensor = torch.tensor(edge, requires_grad=True)
    loss = losses.affinity(tensor, torch.tensor(label), radius=4)
    assert loss.item() == pytest.approx(naive_affinity(edge, label, 4), rel=1e-12, abs=1e-15)
    loss.backward()
    assert tensor.grad.isfinite().all()


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (9, 18)])
def test_affinity_of_an_image_smaller_than_the_radius_is_zero(size):
    edge = torch.rand(size, requires_grad=True)
    loss = losses.affinity(edge, torch.zeros(size, dtype=torch.uint8))
    loss.backward()
    assert loss == 0 and torch.equal(edge.grad, torch.zeros(size))


def test_affinity_gradient():
    rng = np.random.default_rng(0)
    edge = torch.tensor(rng.uniform(0.1, 0.9, (7, 8)), requires_grad=True)
    label = torch.tensor(rng.choice([0, 1, 255], (7, 8)))
    assert torch.autograd.gradcheck(lambda e: losses.affinity(e, label, 3), edge)


def test_segmentation_is_a_mean_over_pixels_or_over_two_kinds():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, 5, 7, generator=generator)
    labels = torch.randint(3, (4, 5, 7), generator=generator)
    labels[0] = 255
    labels[1] = 0
    expected = F.cross_entropy(logits, labels, ignore_index=255)
    torch.testing.assert_close(losses.segmentation(logits, labels), expected)
    of = [F.cross_entropy(logits, labels.where(kind, -1), ignore_index=-1)
          for kind in (labels == 0, (labels > 0) & (labels < 255))]  # fmt: skip
    balanced = losses.segmentation(logits, labels, balanced=True)
    torch.testing.assert_close(balanced, sum(of) / 2)
    counts = losses.count_pixels(labels, True) / 4  # as of one of four microbatches
    parts = [losses.segmentation(logits[i : i + 1], labels[i : i + 1], counts, True) / 4
             for i in range(4)]  # fmt: skip
    torch.testing.assert_close(sum(parts), balanced)
    assert losses.segmentation(logits, torch.full_like(labels, 255), balanced=True) == 0


def test_float32_under_autocast():
    labels, maps = torch.ones(2, 3), torch.rand(2, 3, 4, 4).bfloat16()
    edge, label = torch.rand(2, 12, 22).bfloat16(), torch.ones(2, 12, 22, dtype=torch.long)
    with torch.autocast("cpu", torch.bfloat16):
        assert losses.classification(maps.mean((2, 3)), labels).dtype == torch.float32
        assert losses.reconstruction(maps, maps / 2, labels).dtype == torch.float32
        assert losses.affinity(edge, label).dtype == torch.float32


def test_shapes_that_do_not_fit_are_refused():
    maps, labels = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3)
    with pytest.raises(ValueError, match="fit"):
        losses.reconstruction(maps, maps[..., :3], labels)
    with pytest.raises(ValueError, match="edge and label"):
        losses.affinity(maps[0], labels)
