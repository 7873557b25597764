"""The dense CRF of probabilities with more labels than VOC's: those that nowhere count are out."""

from __future__ import annotations

from core.method import crf

import numpy as np
import pytest
import torch
from test_crf import BOTH

SIZE = (60, 80)  # (H, W)


def scene(n_labels: int, size: tuple[int, int] = SIZE, lead: float = 8):
    """A photograph-like image and the probabilities a network might give: (H, W, 3), (C, H, W).

    Smooth random logits, of which the first four lead by about `lead` and take a part each.
    """
    generator = torch.Generator().manual_seed(n_labels)

    def smooth(channels: int, cells: int) -> torch.Tensor:
        noise = torch.randn(1, channels, cells, cells, generator=generator)
        return torch.nn.functional.interpolate(noise, size, mode="bicubic")[0]

    logits = smooth(n_labels, 9)
    logits[:4] += lead + 4 * smooth(min(n_labels, 4), 5)
    image = 128 + 60 * smooth(3, 5) + 8 * torch.randn(3, *size, generator=generator)
    return image.clamp(0, 255).byte().permute(1, 2, 0).numpy(), logits.softmax(0).numpy()


def whole(monkeypatch: pytest.MonkeyPatch, function, *arguments, **how) -> np.ndarray:
    """What `function` gives where no label is left out."""
    with monkeypatch.context() as patch:
        patch.setattr(crf, "labels_that_count", lambda probs: torch.arange(len(probs)))
        return function(*arguments, **how)


@pytest.mark.parametrize("backend", BOTH)
def test_labels_left_out_change_no_pixel_worth_naming(backend, monkeypatch):
    image, probs = scene(81)
    kept = crf.labels_that_count(torch.from_numpy(probs))
    assert len(kept) < 40
    best = crf.most_probable(image, probs, 10, backend=backend)
    every = whole(monkeypatch, crf.most_probable, image, probs, 10, backend=backend)
    assert (best == every).mean() >= 0.9999
    q = crf.refine_probabilities(image, probs, 10, backend=backend)
    np.testing.assert_array_equal(q.argmax(0), best)
    np.testing.assert_allclose(q.sum(0), 1, atol=1e-4)
    out = np.setdiff1d(np.arange(81), kept.numpy())
    assert not q[out].any()


@pytest.mark.parametrize("backend", BOTH)
def test_the_filter_sees_the_labels_that_count_alone(backend, monkeypatch):
    image, probs = scene(81)
    sizes = []
    real = crf.DenseCRF._infer
    monkeypatch.setattr(
        crf.DenseCRF, "_infer", lambda self, u, n: sizes.append(u.shape[1]) or real(self, u, n)
    )
    crf.most_probable(image, probs, 1, backend=backend)
    crf.most_probable(image, probs[:21], 1, backend=backend)
    assert sizes == [len(crf.labels_that_count(torch.from_numpy(probs))), 21]


def test_which_labels_count():
    probs = torch.full((81, 2, 2), 1e-3)
    probs[7, 0, 0], probs[9, 1, 1] = 0.06, 0.05
    probs[3] = 0.04  # the best of two pixels, in doubt
    assert crf.labels_that_count(probs).tolist() == [0, 3, 7, 9]
    probs[0] = 0  # ruled out: every pixel belongs to a class
    assert crf.labels_that_count(probs).tolist() == [3, 7, 9]
    assert crf.labels_that_count(torch.zeros(81, 2, 2)).tolist() == [0]
    assert crf.labels_that_count(torch.zeros(21, 2, 2)).tolist() == list(range(21))
    assert crf.left_out(21) == {} and crf.left_out(22) == {"crf_min_peak": 0.05}


@pytest.mark.parametrize("value", [np.nan, 1.5, -0.5])
def test_unsound_probabilities_are_refused(value):
    image, probs = scene(81)
    probs[40, 3, 3] = value
    with pytest.raises(ValueError, match=r"NaN or values outside 0\.\.1"):
        crf.most_probable(image, probs, 1, backend="torch")
