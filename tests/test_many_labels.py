"""The dense CRF of probabilities with more labels than VOC's: those that hardly count are out."""

from __future__ import annotations

from core.method import crf
from core.recipe import PROBABILITY_CRF

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


LEFT_OUT = PROBABILITY_CRF.left_out


@pytest.mark.parametrize("backend", BOTH)
@pytest.mark.parametrize("lead", [0, 2, 4, 8])
def test_labels_left_out_change_no_pixel_worth_naming(lead, backend):
    image, probs = scene(81, lead=lead)
    kept = crf.labels_that_count(torch.from_numpy(probs), LEFT_OUT)
    out = np.setdiff1d(np.arange(81), kept.numpy())
    assert 0 < probs[out].sum(0).max() <= LEFT_OUT + 1e-6
    if lead == 8:
        assert len(kept) < 30
    best = crf.most_probable(image, probs, 10, backend=backend, left_out=LEFT_OUT)
    every = crf.most_probable(image, probs, 10, backend=backend)
    assert (best == every).mean() >= 0.999
    q = crf.refine_probabilities(image, probs, 10, backend=backend, left_out=LEFT_OUT)
    np.testing.assert_array_equal(q.argmax(0), best)
    np.testing.assert_allclose(q.sum(0), 1, atol=1e-4)
    assert not q[out].any()


@pytest.mark.parametrize("backend", BOTH)
def test_the_filter_sees_the_labels_that_count_alone(backend, monkeypatch):
    image, probs = scene(81)
    sizes = []
    real = crf.DenseCRF._infer
    monkeypatch.setattr(
        crf.DenseCRF, "_infer", lambda self, u, n: sizes.append(u.shape[1]) or real(self, u, n)
    )
    crf.most_probable(image, probs, 1, backend=backend, left_out=LEFT_OUT)
    crf.most_probable(image, probs, 1, backend=backend)  # unless told to, it leaves out nothing
    assert sizes == [len(crf.labels_that_count(torch.from_numpy(probs), LEFT_OUT)), 81]
    assert crf.may_leave_out(21) == 0 and crf.may_leave_out(22) == LEFT_OUT


def test_which_labels_count():
    probs = torch.zeros(81, 2, 2)
    probs[7], probs[8], probs[9] = 0.03, 0.06, 0.07  # the first two together hold 0.09
    probs[3] = 0.8
    probs[5, 0, 0] = 0.009  # still within 0.1 with them
    assert crf.labels_that_count(probs, 0.1).tolist() == [3, 9]
    probs[5, 0, 0] = 0.02
    assert crf.labels_that_count(probs, 0.1).tolist() == [3, 8, 9]
    probs[0, 1, 1] = 1e-3  # the background, not ruled out
    assert crf.labels_that_count(probs, 0.1).tolist() == [0, 3, 8, 9]
    even = torch.full((81, 2, 2), 1 / 81)  # no pixel loses its most probable label
    even[40] += 1e-4
    assert 40 in crf.labels_that_count(even, 0.1).tolist()
    assert crf.labels_that_count(torch.zeros(81, 2, 2), 0.1).tolist() == [0]


@pytest.mark.parametrize("value", [np.nan, 1.5, -0.5])
def test_unsound_probabilities_are_refused(value):
    image, probs = scene(81)
    probs[40, 3, 3] = value
    with pytest.raises(ValueError, match=r"NaN or values outside 0\.\.1"):
        crf.most_probable(image, probs, 1, backend="torch", left_out=LEFT_OUT)
