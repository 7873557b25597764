"""core.method.cam against the goldens, a naive form, and files that are not what they should be."""

from __future__ import annotations

from core.data import scoring
from core.data.datasets import DataRoot
from core.data.scores import Scores, otsu, sample, strided_size, upsample
from core.data.transforms import pyramid, stack
from core.errors import InputError
from core.method import cam

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import golden, write_data_root
from PIL import Image


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


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_multi_scale_takes_pictures_of_any_mode(mode):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels).convert(mode)
    expected = cam.multi_scale(stand_in, np.array(picture.convert("RGB")), (1.0,))
    torch.testing.assert_close(cam.multi_scale(stand_in, picture, (1.0,)), expected)


def test_sums_of_some_classes_are_those_of_all():
    image = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    copies = [copy[None] for copy in pyramid(image, cam.SCALES)]
    for high_res in (False, True):
        whole = cam.sum_scales(stand_in, copies, image.shape[:2], high_res)
        some = cam.sum_scales(stand_in, copies, image.shape[:2], high_res, [4, 2])
        torch.testing.assert_close(some, whole[:, [3, 1]])
    assert cam.multi_scale(stand_in, image).div_(2).isfinite().all()  # an ordinary tensor


def test_hr_cam_golden():
    """The released second map, from samples at stride 4: how near upsampling comes to it.

    The stand-in's maps are noise of 6 x 9 cells, the worst case: each cell's neighbour is another
    value, and half of the samples lie next to a kink. `high_res=False` is .096 and .0143 off.
    """
    g = golden("multi_scale_cam")
    size, expected = g["image"].shape[:2], torch.from_numpy(g["high_res_cam"])
    sums = cam.multi_scale(stand_in, g["image"], high_res=True)
    assert sums.shape == (4, *strided_size(size))
    maps = cam.of_classes(sums, (np.flatnonzero(g["present"]) + 1).tolist())
    samples = sample(expected)  # nothing but the sampling parts the two
    torch.testing.assert_close(
        maps, samples / samples.amax((1, 2), keepdim=True), rtol=0, atol=2e-5
    )
    error = (upsample(maps.half(), size) - expected).abs()
    assert error.max() < 0.057 and error.mean() < 0.0063
    for threshold in (0.05, 0.1, 0.4):
        ours, theirs = (cam.label_map(m, threshold) for m in (upsample(maps, size), expected))
        assert (ours == theirs).float().mean() > 0.98


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (93, 141), (96, 128)])
def test_sample_undoes_upsample(size):
    maps = torch.rand(3, *strided_size(size), generator=torch.Generator().manual_seed(0))
    full = upsample(maps, size)
    back = sample(full)
    is_lower = back < full.amax((1, 2), keepdim=True)
    torch.testing.assert_close(back[is_lower], maps[is_lower], rtol=0, atol=1e-4)


def test_sample_keeps_the_maximum():
    """Maps are divided by the maximum of their samples: it must be theirs, wherever it lies."""
    y, x = torch.arange(32.0)[:, None], torch.arange(48.0)
    for peak in (13.5, 14.5, 15.5):  # on a sample, beside it, half-way to the next one
        full = (1 - (y - peak).abs() / 16).clamp(min=0) * (1 - (x - peak - 8).abs() / 16)
        full = full.clamp(min=0)[None]
        samples = sample(full)
        assert samples.max() == full.max()
        assert samples.min() >= 0


@pytest.mark.parametrize("threshold", [0.0, 0.35, 0.8])
def test_label_map_is_the_argmax_with_a_constant_background(threshold):
    maps = (torch.rand(3, 9, 14, generator=torch.Generator().manual_seed(0)) * 20).round() / 20
    label = cam.label_map(maps, threshold)
    assert label.dtype == torch.uint8
    for y in range(9):
        for x in range(14):
            best = max(range(3), key=lambda k: maps[k, y, x])
            is_object = maps[best, y, x] > torch.tensor(threshold)  # the background wins ties
            assert label[y, x] == (best + 1 if is_object else 0)


def test_an_image_without_any_class_is_background(tmp_path):
    data = DataRoot(write_data_root(tmp_path / "data", n_train=1))
    maps = cam.of_classes(torch.rand(3, 12, 16), [])
    Scores([], maps.numpy(), (48, 64)).save(tmp_path / "train0.npz")
    file = Scores.load(tmp_path / "train0.npz", 3, (48, 64))
    assert file.classes.shape == (0,) and file.cam.shape == (0, 12, 16)
    full = upsample(torch.from_numpy(file.cam), file.size)
    assert full.shape == (0, 48, 64)
    label = np.array([0, *file.classes])[cam.label_map(full, 0.3)]
    assert label.shape == (48, 64) and not label.any()
    sweep = scoring.scores(data, tmp_path, "SegmentationClass", [0.0, 0.5], ["train0"]).sweep
    for confusion in sweep.confusions():
        assert confusion.matrix.sum() == confusion.matrix[:, 0].sum() == 48 * 64


def test_batches_equal_single_images():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 37, 53, 3)).astype(np.uint8)
    copies = [stack(c) for c in zip(*map(pyramid, images), strict=True)]
    sums = cam.sum_scales(stand_in, copies, (37, 53))
    for i, image in enumerate(images):
        single = [copy[None] for copy in pyramid(image)]
        torch.testing.assert_close(cam.sum_scales(stand_in, single, (37, 53))[0], sums[i])
        # Noise, and resampled by PIL: a pixel of 400 is another level.
        torch.testing.assert_close(cam.multi_scale(stand_in, image), sums[i], rtol=0, atol=1e-3)


@pytest.mark.parametrize("size", [(96, 144), (37, 53), (375, 500), (1, 9)])
def test_the_pyramid_is_that_of_pil(size):
    """Noise is the worst case: every pixel is another than its neighbours."""
    image = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    for scale, copy in zip(cam.SCALES, pyramid(image), strict=True):
        wanted = [max(1, round(side * scale)) for side in size[::-1]]
        usual = np.asarray(Image.fromarray(image).resize(wanted, Image.Resampling.BICUBIC))
        assert copy.dtype == torch.uint8 and copy.shape == (3, *usual.shape[:2])
        difference = np.abs(copy.permute(1, 2, 0).numpy().astype(int) - usual)
        assert difference.max() <= 2
        assert (difference > 0).mean() < 0.03 and (difference > 1).mean() < 1e-3
    np.testing.assert_array_equal(pyramid(image)[1].permute(1, 2, 0), image)  # scale 1


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
    infinite = np.full((2, 3, 4), np.inf, np.float16)
    with pytest.raises(InputError, match="hold NaN"):
        cam_file(cam=infinite).save(path)
    np.savez(path, classes=np.array([1, 3], np.uint8), cam=infinite, size=(9, 14))
    with pytest.raises(InputError, match="not a score file"):
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
    got = otsu(scores)
    within = (scores < got).sum() * scores[scores < got].var()
    within += (scores >= got).sum() * scores[scores >= got].var()
    assert within <= spread[best] * 1.01
    assert otsu(np.full((4, 4), 0.5)) <= 1
