"""The dense CRF: goldens of the released code, the two backends against each other."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from core.errors import InputError
from core.method import crf
from core.method.lattice import Lattice

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[1]
REAL = ROOT.parent / "shared/realvoc/VOC2012"
HAS_PYDENSECRF = crf._pydensecrf() is not None
needs_pydensecrf = pytest.mark.skipif(not HAS_PYDENSECRF, reason="needs pydensecrf")
BOTH = [pytest.param("pydensecrf", marks=needs_pydensecrf), "torch"]


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    return dict(np.load(ROOT / "tests/goldens/crf.npz"))


def argmax_labels(cams: np.ndarray, background: float) -> np.ndarray:
    return np.concatenate([np.full_like(cams[:1], background), cams]).argmax(0)


def affinity_label(model: crf.DenseCRF, cams: np.ndarray) -> np.ndarray:
    """The authors' affinity labels: two passes on one image; 0 background, 255 undecided."""
    foreground, background = (
        model.refine_labels(argmax_labels(cams, score), len(cams) + 1, 10) for score in (0.4, 0.1)
    )
    return np.where((foreground == 0) & (background != 0), 255, foreground)


@pytest.mark.parametrize("backend", BOTH)
def test_golden_affinity_label(golden, backend):
    model = crf.DenseCRF(golden["image"], **crf.LABEL_WIDTHS, backend=backend)
    label = affinity_label(model, golden["cams"])
    classes = np.full(256, 255)
    classes[:3] = golden["keys"]
    np.testing.assert_array_equal(classes[label], golden["affinity_label_fg040_bg010"])


@pytest.mark.parametrize("iterations", [1, 10])
@pytest.mark.parametrize("backend", BOTH)
def test_golden_pseudo_label(golden, backend, iterations):
    labels = argmax_labels(golden["cams"], 0.35)
    refined = crf.refine_labels(golden["image"], labels, 3, iterations, backend=backend)
    assert refined.dtype == np.uint8
    expected = golden[f"pseudo_label_thr035_t{iterations}"]
    np.testing.assert_array_equal(golden["keys"][refined], expected)


@pytest.mark.parametrize("backend", BOTH)
def test_golden_probabilities(golden, backend):
    q = crf.refine_probabilities(golden["image"], golden["prob21"], 10, backend=backend)
    assert q.dtype == np.float32
    tolerance = 1e-5 if backend == "pydensecrf" else 1e-4
    np.testing.assert_allclose(q, golden["prob21_crf_t10"], atol=tolerance, rtol=0)
    label = crf.most_probable(golden["image"], golden["prob21"], 10, backend=backend)
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, q.argmax(0))


def adversarial_images() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:23, :31]
    odd = ((y + x) % 2 == 1)[..., None]
    return {
        "1 pixel": np.full((1, 1, 3), 200, np.uint8),
        "1xN": rng.integers(0, 256, (1, 97, 3), np.uint8),
        "Nx1": rng.integers(0, 256, (66, 1, 3), np.uint8),
        "black": np.zeros((23, 31, 3), np.uint8),
        "constant": np.full((23, 31, 3), (13, 200, 77), np.uint8),
        "checkerboard": np.where(odd, np.uint8([255, 0, 0]), np.uint8([0, 0, 255])),
        "noise": rng.integers(0, 256, (23, 31, 3), np.uint8),
    }


@needs_pydensecrf
@pytest.mark.parametrize("name", adversarial_images())
def test_backends_agree_on_adversarial_input(name):
    image = adversarial_images()[name]
    size = image.shape[:2]
    rng = np.random.default_rng(1)
    for n_labels in (1, 2, 3, 21):
        labels = rng.integers(0, n_labels, size)
        for iterations in (0, 1, 10):
            a, b = (
                crf.refine_labels(image, labels, n_labels, iterations, backend=backend)
                for backend in ("pydensecrf", "torch")
            )
            np.testing.assert_array_equal(a, b)
        soft = rng.dirichlet(np.ones(n_labels), size).transpose(2, 0, 1).astype(np.float32)
        saturated = np.eye(n_labels, dtype=np.float32)[labels].transpose(2, 0, 1)
        for probs in (soft, saturated, np.zeros_like(soft), np.ones_like(soft)):
            a, b = (
                crf.refine_probabilities(image, probs, 10, backend=backend)
                for backend in ("pydensecrf", "torch")
            )
            np.testing.assert_allclose(a, b, atol=1e-3, rtol=0)
            assert (a.argmax(0) == b.argmax(0)).mean() >= 0.9999


@needs_pydensecrf
@pytest.mark.skipif(not REAL.is_dir(), reason="needs shared/realvoc")
def test_backends_agree_on_real_images():
    rng = np.random.default_rng(0)
    for path in sorted((REAL / "JPEGImages").glob("*.jpg"))[:4]:
        image = np.asarray(Image.open(path).convert("RGB"))[:240, :320]
        height, width = image.shape[:2]
        noise = torch.from_numpy(rng.random((1, 21, 7, 9), np.float32))
        scores = torch.nn.functional.interpolate(noise, (height, width), mode="bicubic")[0]
        cams = scores[:2].clamp(0, 1).numpy()
        models = [
            crf.DenseCRF(image, **crf.LABEL_WIDTHS, backend=backend)
            for backend in ("pydensecrf", "torch")
        ]
        a, b = (affinity_label(model, cams) for model in models)
        assert (a == b).mean() >= 0.9999
        a, b = (model.refine_labels(argmax_labels(cams, 0.35), 3, 1) for model in models)
        assert (a == b).mean() >= 0.9999
        probs = (8 * scores[:, ::3, ::3]).softmax(0)
        a, b = (
            crf.refine_probabilities(image[::3, ::3], probs, 10, backend=backend)
            for backend in ("pydensecrf", "torch")
        )
        np.testing.assert_allclose(a, b, atol=1e-3, rtol=0)


@pytest.mark.parametrize("backend", BOTH)
def test_a_model_serves_many_passes(golden, backend):
    model = crf.DenseCRF(golden["image"], **crf.LABEL_WIDTHS, backend=backend)
    for background, n_labels in ((0.4, 3), (0.1, 3), (0.4, 5)):
        labels = argmax_labels(golden["cams"], background)
        alone = crf.refine_labels(golden["image"], labels, n_labels, 2, backend=backend)
        np.testing.assert_array_equal(model.refine_labels(labels, n_labels, 2), alone)


def test_threads_and_kinds_of_input_give_the_same_labels(golden):
    image, labels = golden["image"], argmax_labels(golden["cams"], 0.35)
    expected = crf.refine_labels(image, labels, 3, 3, backend="torch")
    inputs = [
        (Image.fromarray(image), labels.astype(np.uint8)),
        (torch.from_numpy(image), torch.from_numpy(labels)),
        (image[::-1].copy()[::-1], labels[::-1].copy()[::-1]),
        (np.asfortranarray(image), np.asfortranarray(labels)),
    ]
    with ThreadPoolExecutor(4) as pool:
        for refined in pool.map(
            lambda pair: crf.refine_labels(*pair, 3, 3, backend="torch"), inputs
        ):
            np.testing.assert_array_equal(refined, expected)


def test_the_spatial_lattice_is_shared_between_images_of_a_size():
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 12, 3), np.uint8)
    a, b = (crf.DenseCRF(image, 50, 5, backend="torch") for image in images)
    assert a._terms[0][0] is b._terms[0][0]
    assert a._terms[1][0] is not b._terms[1][0]


@pytest.mark.parametrize("d", [2, 5])
def test_filter_is_linear_and_labels_in_groups_change_nothing(d, monkeypatch):
    torch.manual_seed(0)
    lattice = Lattice(4 * torch.rand(300, d))
    values = torch.rand(300, 7)
    filtered = lattice.filter(values)
    torch.testing.assert_close(lattice.filter(values.sum(1, keepdim=True))[:, 0], filtered.sum(1))
    monkeypatch.setattr("core.method.lattice._MAX_VALUES", 1)
    torch.testing.assert_close(lattice.filter(values), filtered, rtol=0, atol=0)


def test_points_too_far_apart_for_exact_keys():
    torch.manual_seed(0)
    near, far = 3 * torch.rand(200, 5), 1e6 * (1 + torch.rand(200, 5))
    values = torch.rand(200, 3)
    both = Lattice(torch.cat([near, far])).filter(torch.cat([values, values]))
    torch.testing.assert_close(both[:200], Lattice(near).filter(values))


IMAGE = np.zeros((4, 6, 3), np.uint8)
LABELS = np.zeros((4, 6), np.int64)
PROBS = np.full((2, 4, 6), 0.5, np.float32)


@pytest.mark.parametrize(
    ("refine", "message"),
    [
        (lambda: crf.refine_labels(IMAGE.astype(np.float32), LABELS, 2, 1), "image must be uint8"),
        (lambda: crf.refine_labels(IMAGE[..., 0], LABELS, 2, 1), "image must be uint8"),
        (lambda: crf.refine_labels(IMAGE[:0], LABELS[:0], 2, 1), "image must be uint8"),
        (lambda: crf.refine_labels(IMAGE, LABELS.T, 2, 1), r"labels must be integer \(4, 6\)"),
        (lambda: crf.refine_labels(IMAGE, LABELS + 0.5, 2, 1), "labels must be integer"),
        (lambda: crf.refine_labels(IMAGE, LABELS + 2, 2, 1), r"labels 2\.\.2 do not fit"),
        (lambda: crf.refine_labels(IMAGE, LABELS - 1, 2, 1), r"labels -1\.\.-1 do not fit"),
        (lambda: crf.refine_labels(IMAGE, LABELS, 2, -1), "iterations must be 0 or more"),
        (lambda: crf.refine_labels(IMAGE, LABELS, 2, 1, backend="c"), "one of torch, pydensecrf"),
        (lambda: crf.refine_probabilities(IMAGE, PROBS[:, 1:], 1), "probabilities must be"),
        (lambda: crf.refine_probabilities(IMAGE, PROBS.astype(int), 1), "must be floating"),
        (lambda: crf.refine_probabilities(IMAGE, PROBS * np.nan, 1), "hold NaN"),
        (lambda: crf.refine_probabilities(IMAGE, PROBS * 10, 1), "outside 0..1"),
        (lambda: crf.most_probable(IMAGE, PROBS - 1, 1), "outside 0..1"),
        (lambda: crf.DenseCRF(IMAGE, 0, 5), "sxy and srgb must be positive"),
    ],
)
def test_bad_input_is_refused_in_one_line(refine, message):
    with pytest.raises(ValueError, match=message) as error:
        refine()
    assert "\n" not in str(error.value)


def test_a_backend_that_is_not_there(monkeypatch):
    monkeypatch.setattr(crf, "_pydensecrf", lambda: None)
    assert crf.require("torch") == "torch"
    with pytest.raises(InputError, match=r"requirements-crf\.txt"):
        crf.require("pydensecrf")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_agrees_with_the_cpu_on_several_streams(golden):
    image, probs = golden["image"], golden["prob21"]

    def refine(_: int) -> np.ndarray:
        with torch.cuda.stream(torch.cuda.Stream()):
            return crf.refine_probabilities(image, probs, 10, device="cuda")

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(refine, range(8)))
    np.testing.assert_allclose(results[0], golden["prob21_crf_t10"], atol=1e-3, rtol=0)
    for q in results[1:]:
        np.testing.assert_array_equal(q, results[0])


@pytest.mark.parametrize("backend", BOTH)
def test_several_label_maps_at_once(backend):
    """The passes of the affinity labels together give what each gives alone."""
    rng = np.random.default_rng(0)
    image = np.kron(rng.integers(0, 255, (5, 6, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    maps = [rng.integers(0, 3, image.shape[:2]) for _ in range(3)]
    field = crf.DenseCRF(image, **crf.LABEL_WIDTHS, backend=backend)
    together = field.refine_label_maps(maps, 3, 10)
    for labels, refined in zip(maps, together, strict=True):
        alone = crf.refine_labels(image, labels, 3, 10, backend=backend)
        assert np.array_equal(refined, alone)
