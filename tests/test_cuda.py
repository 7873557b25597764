"""The method on pretended CUDA: the rules of devices, the CPU's results, and who waits for whom."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from core.data.scores import Scores
from core.data.transforms import normalize
from core.errors import InputError
from core.method import affinity, cam, crf, losses, segmentation
from core.method.lattice import Lattice, _shared_lattice
from core.method.puzzle import merge, tile
from core.method.random_walk import random_walk, rescale
from core.run import precision

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import REPO
from pretend_cuda import CUDA, Log, pretend_cuda
from torch import Tensor


@pytest.fixture
def log() -> Iterator[Log]:
    _shared_lattice.cache_clear()
    with pretend_cuda(REPO) as log:
        yield log


def random(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape)))


def network(views: Tensor) -> Tensor:
    """Class maps (N, 4, H/16, W/16) without a parameter."""
    maps = F.avg_pool2d(views, 16, ceil_mode=True)
    return torch.cat([maps, maps[:, :1] - maps[:, 1:2]], 1)


IMAGES = (255 * random(2, 3, 40, 56)).byte()
COPIES = [IMAGES, F.interpolate(IMAGES, scale_factor=2)]
BOXES = torch.tensor([[0, 0, 40, 56], [3, 5, 20, 56]])
EDGE = random(2, 24, 30)
LABEL = (random(2, 6, 6) * 4).long().repeat_interleave(4, 1).repeat_interleave(5, 2)
LABEL[:, :2] = 255
MAPS, CLASSES = random(2, 5, 8, 8), (random(2, 5) > 0.5).float()
WALKED = random(2, 12, 15).double()
IMAGE = (255 * random(20, 30, 3)).byte().numpy()
PROBABILITIES = random(3, 20, 30).softmax(0)
MASKS = MAPS.argmax(1)

TRAINING = {
    "classification": (lambda x, y: losses.classification(x.mean((2, 3)), y), MAPS, CLASSES),
    "reconstruction": (
        lambda x, y: losses.reconstruction(x, merge(tile(x.square())), y),
        MAPS,
        CLASSES,
    ),
    "reconstruction of small tiles": (
        lambda x, y: losses.reconstruction(x, merge(tile(x.square())), y, seams=2, relative=True),
        MAPS,
        CLASSES,
    ),
    "affinity loss": (lambda x, y: losses.affinity(x, y, 5), EDGE, LABEL),
    "affinity loss, counts": (
        lambda x, y: losses.affinity(x, y, 5, losses.count_pairs(y, 5)),
        EDGE,
        LABEL,
    ),
    "segmentation loss": (losses.segmentation, MAPS, MASKS),
    "segmentation loss, balanced": (
        lambda x, y: losses.segmentation(x, y, losses.count_pixels(y, True), True),
        MAPS,
        MASKS,
    ),
    "affinities": (lambda x: affinity.affinity(x, 4).square().mean(), EDGE),
}
INFERENCE = {
    "normalize": (normalize, IMAGES, BOXES),
    "sums at stride 4": (lambda *x: cam.sum_scales(network, x, (40, 56)), *COPIES),
    "sums of hr_cam": (lambda *x: cam.sum_scales(network, x, (40, 56), high_res=True), *COPIES),
    "classes": (lambda x: cam.of_classes(x, [1, 3]), MAPS[0]),
    "no class": (lambda x: cam.of_classes(x, []), MAPS[0]),
    "cam.normalize": (cam.normalize, MAPS),
    "label map": (lambda x: cam.label_map(x, 0.6), MAPS[0]),
    "segmentation": (lambda *x: segmentation.probabilities(network, x, (40, 56)), *COPIES),
    "walk": (lambda x, y: rescale(random_walk(x, y), (46, 59)), WALKED, WALKED[0]),
}


def moved(inputs: tuple[Tensor, ...]) -> list[Tensor]:
    return [tensor.to(CUDA) for tensor in inputs]


@pytest.mark.parametrize("case", TRAINING)
def test_a_training_step_never_waits(case, log):
    function, first, *others = TRAINING[case]
    leaves = first.clone().requires_grad_(), first.to(CUDA).requires_grad_()
    arguments = others, moved(others)
    log.clear()
    for leaf, rest in zip(leaves, arguments, strict=True):
        function(leaf, *rest).backward()
    assert not log.waits
    assert torch.equal(leaves[1].grad.cpu(), leaves[0].grad)


@pytest.mark.parametrize("case", INFERENCE)
def test_inference_never_waits(case, log):
    function, *inputs = INFERENCE[case]
    arguments = moved(inputs)
    log.clear()
    with torch.inference_mode():
        got = function(*arguments)
        assert not log.waits
        assert got.device == CUDA
        assert torch.equal(got.cpu(), function(*inputs))


@pytest.mark.parametrize("capability", [(9, 0), (7, 0)], ids=["bf16", "fp16"])
def test_losses_are_float32_under_autocast(capability):
    with pretend_cuda(REPO, capability) as log:
        maps, labels, edge, label = moved((MAPS, CLASSES, EDGE, LABEL))
        log.clear()
        with precision.autocast(precision.amp_type("auto", CUDA), CUDA):
            narrow = F.conv2d(maps, maps[0, :, None, :1, :1], groups=5)
            assert narrow.dtype == (torch.bfloat16 if capability >= (8, 0) else torch.float16)
            assert losses.classification(narrow.mean((2, 3)), labels).dtype == torch.float32
            assert losses.reconstruction(narrow, narrow / 2, labels).dtype == torch.float32
            assert losses.affinity(edge.to(narrow.dtype), label, 5).dtype == torch.float32
        assert not log.waits


@pytest.mark.parametrize("capability", [(9, 0), (7, 0)], ids=["bf16", "fp16"])
def test_high_res_sums_are_float32_under_autocast(capability):
    expected = cam.sum_scales(network, COPIES, (40, 56), high_res=True)
    with pretend_cuda(REPO, capability):
        with precision.autocast(precision.amp_type("auto", CUDA), CUDA):
            got = cam.sum_scales(network, moved(COPIES), (40, 56), high_res=True)
        assert torch.equal(got.cpu(), expected)


REFINEMENTS: dict[str, tuple[Callable, object]] = {
    "label map of the host": (crf.DenseCRF.refine_labels, np.arange(600).reshape(20, 30) % 3),
    "label map of the GPU": (crf.DenseCRF.refine_labels, PROBABILITIES.argmax(0)),
    "probabilities": (crf.DenseCRF.refine_probabilities, PROBABILITIES),
    "most probable": (crf.DenseCRF.most_probable, PROBABILITIES),
    "most probable, larger": (
        lambda model, probs, count: model.most_probable(probs, count, size=(70, 95)),
        PROBABILITIES,
    ),
}


def test_the_crf_leaves_the_same_labels_out(log):
    logits = random(30, 20, 30)
    logits[6:] -= 9
    probs = logits.softmax(0)
    here, there = (crf.DenseCRF(IMAGE, 80, 13, device=where) for where in ("cpu", CUDA))
    expected = here.refine_probabilities(probs, 2, 0.1)
    assert 0 < (expected == 0).all((1, 2)).sum() < 30
    np.testing.assert_allclose(there.refine_probabilities(probs, 2, 0.1), expected, atol=1e-4)


@pytest.mark.parametrize("case", REFINEMENTS)
def test_the_crf_waits_for_the_size_of_its_lattice_and_for_its_result(case, log):
    refine, given = REFINEMENTS[case]
    counts = (3, 4) if refine is crf.DenseCRF.refine_labels else (4,)
    on_gpu = given.to(CUDA) if isinstance(given, Tensor) and "host" not in case else given
    for lattices in (2, 1):  # the spatial one is kept for the next image of this size
        log.clear()
        got = refine(crf.DenseCRF(IMAGE, 50, 5, device=CUDA), on_gpu, *counts)
        waits = [(wait.kind, wait.where.split(":")[0]) for wait in log.waits]
        expected = [("nonzero", "core/method/lattice.py")] * lattices
        assert waits == [*expected, ("copy to the CPU", "core/method/crf.py")]
    expected = refine(crf.DenseCRF(IMAGE, 50, 5, backend="torch"), given, *counts)
    assert got.dtype == expected.dtype
    np.testing.assert_allclose(got, expected, atol=1e-4)  # the logarithms differ in the last bit


@pytest.mark.parametrize("d", [2, 5])
@pytest.mark.parametrize("far", [1.0, 1e6])
def test_a_lattice_waits_once(d, far, log):
    points, values = random(300, d) * 4, random(300, 7)
    points[150:] *= far
    on_gpu, values_on_gpu = moved((points, values))
    log.clear()
    got = Lattice(on_gpu).normalize_().filter(values_on_gpu)
    assert [wait.kind for wait in log.waits] == ["nonzero"]
    assert torch.equal(got.cpu(), Lattice(points).normalize_().filter(values))


@pytest.mark.parametrize("where", ["scores", "edge"])
def test_bad_values_in_the_walk_end_before_the_file(where, log, tmp_path):
    """On the CPU they raise; on a GPU nobody asks, until the scores are on the host to be saved."""
    scores, edge = WALKED.clone(), WALKED[0].clone()
    (scores if where == "scores" else edge).view(-1)[7] = torch.nan if where == "scores" else 1.5
    with pytest.raises(ValueError, match="finite scores and edges in"):
        random_walk(scores, edge)
    walked = rescale(random_walk(*moved((scores, edge))), (46, 59)).cpu().numpy()
    assert np.isnan(walked).all()
    with pytest.raises(InputError, match="hold NaN"):
        Scores([1, 2], walked, (46, 59)).save(tmp_path / "a.npz")
    assert not list(tmp_path.iterdir())


def test_bad_input_of_the_crf_is_refused_on_a_gpu_too(log):
    model = crf.DenseCRF(IMAGE, 50, 5, device=CUDA)
    for refine in (model.refine_probabilities, model.most_probable):
        with pytest.raises(ValueError, match="hold NaN"):
            refine((PROBABILITIES * 2).to(CUDA), 1)
    with pytest.raises(RuntimeError, match="out of bounds"):  # a GPU's kernel ends the program
        model.refine_labels(torch.full((20, 30), 3).to(CUDA), 3, 1)


# The harness itself.


@pytest.mark.parametrize(
    ("kind", "act"),
    [
        ("item", lambda x: x.sum().item()),
        ("item", lambda x: bool(x.isfinite().all())),
        ("copy to the CPU", lambda x: x.cpu()),
        ("copy to the CPU", lambda x: torch.zeros(3, 4).copy_(x)),
        ("copy to the CPU that nobody waits for", lambda x: x.to("cpu", non_blocking=True)),
        ("blocking copy to the GPU", lambda x: torch.tensor([1.0], device=CUDA)),
        ("blocking copy to the GPU", lambda x: x.new_tensor(4.0)),
        ("blocking copy to the GPU", lambda x: x[[0, 2]]),
        ("tolist", lambda x: x.tolist()),
        ("nonzero", lambda x: x.nonzero()),
        ("masked_select", lambda x: x.masked_select(x > 0)),
        ("boolean index", lambda x: x[x > 0]),
        ("repeat_interleave", lambda x: x[0].repeat_interleave(x[0].long())),
        (None, lambda x: torch.zeros(3, 4).to(CUDA, non_blocking=True) + x),
        (None, lambda x: torch.full((), 2.0, device=CUDA) * x + torch.tensor(3.0)),
        (None, lambda x: x[0].repeat_interleave(x[0].long(), output_size=4)),
    ],
)
def test_the_log_knows_a_wait(kind, act, log):
    ones = torch.ones(3, 4).to(CUDA)
    log.clear()
    act(ones)
    assert [wait.kind for wait in log.waits] == [kind] * (kind is not None)
    assert log.count(where="tests/test_cuda.py:") == len(log.waits) == log.count(kind or "")


def test_devices_do_not_mix(log):
    ones = torch.ones(3).to(CUDA)
    with pytest.raises(RuntimeError, match="one device"):
        ones + torch.ones(3)
    with pytest.raises(TypeError, match="numpy"):
        np.asarray(ones)
    with pytest.raises(ValueError):
        torch.cuda.set_device(torch.device("cuda"))


def test_backward_is_the_engines(log):
    """Several outputs of which one is used, a branch that rejoins, a parameter used twice."""
    layer = torch.nn.Conv2d(3, 4, 3, bias=False)
    norm = torch.nn.Sequential(torch.nn.GroupNorm(2, 4), torch.nn.BatchNorm2d(4))
    norm.add_module("again", norm[0])

    def loss(images: Tensor) -> Tensor:
        maps = norm(layer(images))
        left, _ = maps.max(1)[0].chunk(2)
        return (left * maps.mean((1, 2, 3), keepdim=True)[0, 0]).square().sum()

    loss(MAPS[:, :3]).backward()
    expected = [parameter.grad.clone() for parameter in (*layer.parameters(), *norm.parameters())]
    for module in (layer, norm):
        module.zero_grad()
        module.to(CUDA)
    loss(MAPS[:, :3].to(CUDA)).backward()
    got = [parameter.grad.cpu() for parameter in (*layer.parameters(), *norm.parameters())]
    assert all(map(torch.equal, got, expected))
