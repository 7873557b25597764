"""core.method.boundary against straightforward forms of it."""

from __future__ import annotations

from core.method import crf
from core.method.boundary import at_edges, confident_labels, edge_map
from core.recipe import AFFINITY_LABELS, LABEL_CRF

import numpy as np
import pytest
import torch
from conftest import golden
from PIL import Image


def edges(images: torch.Tensor) -> torch.Tensor:
    """A network that sees left from right and the size of what it is given: stride 4, 3x3."""
    kernel = torch.tensor([[0.3, -1.0, 0.2], [0.7, 0.1, -0.9], [0.4, 0.6, -0.2]])
    maps = torch.nn.functional.conv2d(images.mean(1, keepdim=True), kernel[None, None], None, 4, 1)
    return (maps - maps.mean((2, 3), keepdim=True))[:, 0]


def padded_to(side: int, pad_to: int) -> int:
    while pad_to < side:
        pad_to = side if side % 32 == 0 else side + 32 - side % 32
    return pad_to


def reference(image: np.ndarray, pad_to: int) -> np.ndarray:
    """The edge map in NumPy, the image and its mirror image one after the other."""
    height, width = image.shape[:2]
    normal = (image / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    logits = []
    for view in (normal, normal[:, ::-1]):
        canvas = np.zeros((padded_to(height, pad_to), padded_to(width, pad_to), 3), np.float32)
        canvas[:height, :width] = view
        edge = edges(torch.from_numpy(canvas.transpose(2, 0, 1))[None])[0].numpy()
        logits.append(edge[: -(-height // 4), : -(-width // 4)])
    mean = (logits[0] + logits[1][:, ::-1]) / 2
    return 1 / (1 + np.exp(-mean))


def example(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize("size", [(64, 64), (48, 60), (33, 47), (1, 3), (65, 97), (50, 131)])
def test_edge_map_equals_two_padded_passes(size):
    """Sizes below, at and above pad_to, odd ones too."""
    image = example(*size)
    got = edge_map(edges, torch.from_numpy(image).permute(2, 0, 1), pad_to=64)
    assert got.dtype == torch.float32 and not got.requires_grad
    np.testing.assert_allclose(got, reference(image, 64), atol=1e-5)


def test_edge_map_averages_the_flip():
    """So the map of the mirror image is the mirrored map, whatever the network."""
    image = torch.from_numpy(example(64, 61)).permute(2, 0, 1)
    straight, mirrored = edge_map(edges, image, 64), edge_map(edges, image.flip(-1), 64)
    np.testing.assert_allclose(straight, mirrored.flip(-1), atol=1e-6)


def test_edge_map_pads_to_the_crop_of_the_training():
    sizes = []

    def network(views: torch.Tensor) -> torch.Tensor:
        sizes.append(tuple(views.shape))
        return edges(views)

    edge_map(network, torch.zeros(3, 40, 513, dtype=torch.uint8))
    assert sizes == [(2, 3, 512, 544)]


def test_labels_at_edges_are_pixel_4i_plus_2():
    """PIL's nearest resize of the 512 crop to 128, for one map and for batches."""
    labels = np.random.default_rng(0).integers(0, 256, (2, 512, 512)).astype(np.uint8)
    resized = [np.array(Image.fromarray(m).resize((128, 128), Image.NEAREST)) for m in labels]
    np.testing.assert_array_equal(at_edges(torch.from_numpy(labels)), np.stack(resized))
    np.testing.assert_array_equal(at_edges(torch.from_numpy(labels[0])), resized[0])
    assert at_edges(torch.arange(12).repeat(4, 1)).tolist() == [[2, 6, 10]]
    with pytest.raises(ValueError, match="multiples of 4"):
        at_edges(torch.zeros(1, 8, 10))


def test_confident_labels_are_the_strict_foreground_and_the_common_background():
    rng = np.random.default_rng(0)
    strict, generous = rng.choice([0, 0, 3, 7], (2, 9, 11))
    expected = np.full((9, 11), 255)
    for y in range(9):
        for x in range(11):
            if strict[y, x] != 0:
                expected[y, x] = strict[y, x]
            elif generous[y, x] == 0:
                expected[y, x] = 0
    got = confident_labels(strict, generous)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, expected)
    with pytest.raises(ValueError, match="shape"):
        confident_labels(np.zeros((2, 3), int), np.zeros((3, 2), int))


def test_confident_labels_golden():
    """From scores to affinity labels: background .40 and .10, argmax, CRF."""
    g = golden("crf")
    thresholds = (AFFINITY_LABELS.foreground_threshold, AFFINITY_LABELS.background_threshold)
    scores = [np.concatenate([np.full_like(g["cams"][:1], t), g["cams"]]) for t in thresholds]
    field = crf.DenseCRF(
        g["image"], LABEL_CRF.bilateral_sxy, LABEL_CRF.bilateral_srgb, backend="torch"
    )
    labels = [s.argmax(0) for s in scores]
    refined = field.refine_label_maps(labels, 3, AFFINITY_LABELS.crf_iterations)
    foreground, background = (g["keys"][each] for each in refined)
    expected = g["affinity_label_fg040_bg010"]
    np.testing.assert_array_equal(confident_labels(foreground, background), expected)
