"""core.method.cam against the goldens, a naive form, and files that are not what they should be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import golden

from core.data.scores import Scores, strided_size, upsample
from core.data.transforms import pyramid
from core.errors import InputError
from core.method import cam


def stand_in(images: torch.Tensor) -> torch.Tensor:
    """The golden's network: zero-pad to a multiple of 16, 16x16 means; channels R, G, B, R - G."""
    height, width = images.shape[2:]
    images = F.pad(images, (0, -width % 16, 0, -height % 16))
    mean = F.avg_pool2d(images, 16)
    return torch.cat([mean, mean[:, :1] - mean[:, 1:2]], 1)


def test_normalize_golden():
    g = golden("cam_norm")
    got = cam.normalize(torch.from_numpy(g["features"]))
    np.testing.assert_allclose(got, g["cams"], rtol=1e-5, atol=1e-7)


def test_multi_scale_golden():
    g = golden("multi_scale_cam")
    sums = cam.multi_scale(stand_in, g["image"], cam.SCALES)
    assert sums.shape == (4, 24, 36)
    classes = (np.flatnonzero(g["present"]) + 1).tolist()
    got = cam.of_classes(sums, classes)
    np.testing.assert_allclose(got, g["strided_cam"], rtol=1e-5, atol=1e-6)


def test_batches_equal_single_images():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 37, 53, 3)).astype(np.uint8)
    single = torch.stack([cam.multi_scale(stand_in, image) for image in images])
    copies = [torch.stack(c) for c in zip(*map(pyramid, images), strict=True)]
    torch.testing.assert_close(cam.sum_scales(stand_in, copies, (37, 53)), single)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (33, 40), (5, 3)])
def test_any_size(size):
    image = np.full((*size, 3), 200, np.uint8)
    sums = cam.multi_scale(stand_in, image)
    assert sums.shape[1:] == strided_size(size)
    assert upsample(sums, size).shape[1:] == size


def cam_file(**changes) -> Scores:
    fields = {"classes": np.array([1, 3]), "cam": np.ones((2, 3, 4)), "size": (9, 14)}
    return Scores(**(fields | changes))


def test_file_round_trip(tmp_path):
    file = cam_file(cam=np.random.default_rng(0).random((2, 3, 4)))
    file.save(tmp_path / "a.npz")
    back = Scores.load(tmp_path / "a.npz", 3, (9, 14))
    assert back.size == (9, 14) and back.classes.tolist() == [1, 3]
    assert back.cam.dtype == np.float16
    np.testing.assert_allclose(back.cam, file.cam, atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": np.array([1, 9])}, "other classes"),
        ({"classes": np.array([0, 1])}, "other classes"),
        ({"size": (8, 14)}, "not a score file"),
        ({"cam": np.full((2, 3, 4), np.nan)}, "not a score file"),
        ({"size": (10, 14)}, "image of 14x10"),
    ],
)
def test_file_refused(tmp_path, changes, message):
    cam_file(**changes).save(tmp_path / "a.npz")
    with pytest.raises(InputError, match=message):
        Scores.load(tmp_path / "a.npz", 3, (9, 14))


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "a.npz"
    with pytest.raises(InputError, match="no scores for this id"):
        Scores.load(path, 3)
    cam_file().save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="damaged"):
        Scores.load(path, 3)
    np.savez(path, classes=np.array([{}], dtype=object), cam=np.zeros(1), size=np.zeros(2))
    with pytest.raises(InputError, match="damaged"):
        Scores.load(path, 3)


def test_otsu_is_the_exhaustive_search():
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.normal(0.15, 0.05, 900), rng.normal(0.7, 0.1, 300)]).clip(0, 1)
    spread = {
        t: (scores < t).sum() * scores[scores < t].var()
        + (scores >= t).sum() * scores[scores >= t].var()
        for t in np.linspace(0.05, 0.9, 200)
    }
    best = min(spread, key=spread.get)
    got = cam.otsu(scores)
    within = (scores < got).sum() * scores[scores < got].var()
    within += (scores >= got).sum() * scores[scores >= got].var()
    assert within <= spread[best] * 1.01
    assert cam.otsu(np.full((4, 4), 0.5)) <= 1
