"""Backbones of timm: their pyramids in the three networks, training, what is refused."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import make_cam
import train_classification
from core.data.scores import Scores
from core.errors import InputError
from core.method import backbones, timm_models
from core.method.networks import AffinityNet, Classifier, DeepLabV3Plus
from core.method.puzzle import merge, tile
from core.run import training

import numpy as np
import pytest
import torch
from conftest import SMALL, run_stage

timm = pytest.importorskip("timm")
# One of each kind that is named as tried, as small as there is.
PYRAMIDS = [
    "tf_efficientnet_lite0",
    "convnext_atto",
    "regnety_002",
    "mobilenetv3_small_050",
    "resnext26ts",
    "vgg11",  # strides 1 to 32
    "swin_tiny_patch4_window7_224",  # (N, H, W, C)
]
VITS = ["deit_tiny_patch16_224", "vit_small_patch14_dinov2"]


@pytest.fixture(scope="module", params=PYRAMIDS)
def pyramid(request: pytest.FixtureRequest) -> backbones.Backbone:
    return backbones.build(f"timm:{request.param}").eval()


def test_taps(pyramid):
    """Of any size of image: as many cells as the stride has room for, the first at stride 4."""
    assert pyramid.strides[0] == 4 and sorted(pyramid.strides) == pyramid.strides
    for size in ((64, 96), (70, 101)):
        with torch.no_grad():
            taps = pyramid(torch.randn(1, 3, *size))
        for tap, channels, stride in zip(taps, pyramid.channels, pyramid.strides, strict=True):
            assert tap.shape == (1, channels, *(math.ceil(side / stride) for side in size))
    assert backbones.stride_of(pyramid.name) == pyramid.strides[-1]


def test_a_cell_lies_where_its_pixels_are(pyramid):
    """Whatever a network does at borders: what changes in a corner changes the map there most."""
    torch.manual_seed(0)
    images = torch.randn(1, 3, 128, 192)
    other = images.clone()
    other[..., 96:, 160:] = -other[..., 96:, 160:]
    with torch.no_grad():
        pairs = list(zip(pyramid(images), pyramid(other), strict=True))
    for before, after in pairs[:3]:
        change = (before - after).abs().sum(1)[0]
        rows, columns = (side // 2 for side in change.shape)
        corner = change[rows:, columns:].mean()
        assert corner > 2 * change[:rows, :columns].mean()


def test_strided_pointwise_convolutions_are_the_same_and_safe():
    """Of RepVGG: torch's backward pass of them corrupts a CPU's memory, channels last."""
    torch.manual_seed(0)
    pyramid = backbones.build("timm:repvgg_a0").eval()
    theirs = timm.create_model("repvgg_a0", features_only=True, output_stride=16).eval()
    theirs.load_state_dict(pyramid.net.state_dict())
    pyramid = pyramid.to(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 64, 96)
    for ours, other in zip(pyramid.net(images), theirs(images), strict=True):
        torch.testing.assert_close(ours, other)
    convolutions = [m for m in pyramid.net.modules() if isinstance(m, torch.nn.Conv2d)]
    pointwise = [m for m in convolutions if m.kernel_size == (1, 1) and m.in_channels == 3]
    assert pointwise and all(m.stride == (1, 1) for m in pointwise)


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "resnext26ts", "convnext_atto"])
def test_synchronised_statistics_change_nothing_else(name):
    network = Classifier(f"timm:{name}", 3).eval()
    names, images = list(network.state_dict()), torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        before = network(images)
        after = training.synchronise(network)
        torch.testing.assert_close(after(images), before)
    assert list(after.state_dict()) == names
    kinds = {type(module).__name__ for module in after.modules()}
    assert not any(kind.startswith("BatchNorm") for kind in kinds)


# TinyViT keeps biases in eval mode, with the graph of a step.
@pytest.mark.parametrize("name", [*PYRAMIDS, "tiny_vit_5m_224"])
def test_the_three_networks(name):
    """Shapes, and two backward passes through what each of them trains."""
    images = torch.randn(2, 3, 64, 96)
    stride = backbones.stride_of(f"timm:{name}")
    for network, shape in (
        (Classifier(f"timm:{name}", 3), (2, 3, 64 // stride, 96 // stride)),
        (AffinityNet(f"timm:{name}"), (2, 16, 24)),
        (DeepLabV3Plus(f"timm:{name}", 4), (2, 4, 64, 96)),
    ):
        for _ in range(2):
            out = network.train()(images)
            assert out.shape == shape
            out.square().mean().backward()
        trained = [p for p in network.parameters() if p.requires_grad]
        assert sum(p.grad is not None for p in trained) > 0.8 * len(trained)
        is_frozen = not isinstance(network, Classifier)
        norms = (m for m in network.backbone.modules() if not hasattr(m, "attention_bias_cache"))
        assert not (is_frozen and any(m.training for m in norms))


@pytest.mark.parametrize("name", VITS)
def test_plain_vits_are_for_classifiers(name):
    """Their maps are tiled and merged; those of the other networks would lack a stride of 4."""
    stride = backbones.stride_of(f"timm:{name}")
    network = Classifier(f"timm:{name}", 3).eval()
    images = torch.randn(1, 3, 4 * stride, 4 * stride)
    with torch.no_grad():
        assert network(images).shape == (1, 3, 4, 4)
        assert merge(network(tile(images))).shape == (1, 3, 4, 4)
    for other in (AffinityNet, lambda n: DeepLabV3Plus(n, 4)):
        with pytest.raises(InputError, match=rf"have the strides \[{stride}, .* needs one at 4"):
            other(f"timm:{name}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:tf_efficientnet_lite9", "no model 'tf_efficientnet_lite9'; is tf_efficientnet_lite"),
        ("timm:convnext_atto.in99k", "no model 'convnext_atto.in99k'; is convnext_atto.d2_in1k"),
        ("timm:tf_efficientnet_b0_ns", r"; is tf_efficientnet_b0\.ns_jft_in1k meant\?"),
        ("timm:mixer_s16_224", "takes no images of 32x32"),
        ("timm:crossvit_15_dagger_408", "no pyramid of maps: it gives .* of an image of"),
        ("timm:mvitv2_tiny", "takes no images of 480x320"),
        ("timm:lambda_resnet26t", "has 3-d convolutions"),
        ("timm:hf_hub:someone/convnext", "unknown backbone"),
        ("timm:../x", "unknown backbone"),
        ("timm:", "unknown backbone"),
    ],
)
def test_names_that_are_refused(name, message):
    with pytest.raises(InputError, match=message) as error:
        backbones.build(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "stages"), [("sedarknet21", 6), ("sequencer2d_s", 4)])
def test_the_last_stage_is_there(name, stages):
    """timm gives the first five at most unless it is asked for more, of some the first three."""
    with torch.device("meta"):
        assert len(backbones.build(f"timm:{name}").strides) == stages


def test_what_is_not_reached_is_not_trained():
    """Of a network with branches for each tap; DDP waits for the gradients of all that is."""
    network = Classifier("timm:hrnet_w18_small", 2)
    training.freeze_unreached(network, torch.device("cpu"))
    network.train()(torch.randn(2, 3, 64, 64)).sum().backward()
    trained = [p.grad is not None for p in network.parameters() if p.requires_grad]
    assert all(trained) and 0 < len(trained) < len(list(network.parameters()))


def test_without_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    timm_models.config.cache_clear()
    with pytest.raises(InputError, match=r"need timm: pip install -r requirements-timm\.txt"):
        backbones.build("timm:convnext_atto")


def train(data: Path, out: Path, *more: object) -> dict:
    options = [*SMALL, "--backbone", "timm:mobilenetv3_small_050", "--save-every", 1, *more]
    run_stage(train_classification.main, "--data", data, "--split", "train", "--out", out, *options)
    return json.loads((out / "run.json").read_text())


def test_training_resume_and_cams(data_root, tmp_path):
    """A stopped training goes on to the same bytes; its model makes CAMs, starts another."""
    made = train(data_root, tmp_path / "one")
    name = "timm:mobilenetv3_small_050.lamb_in1k"
    assert made["resolved"]["backbone"] == name
    model = torch.load(tmp_path / "one/model.pt", weights_only=True)
    assert model["arguments"]["backbone"] == name

    class Stop(Exception):
        pass

    count = 0

    def stop(*_: object) -> None:
        nonlocal count
        count += 1
        if count == 2:
            raise Stop

    with pytest.MonkeyPatch.context() as patch:
        real = train_classification.Trainer.save
        patch.setattr(train_classification.Trainer, "save", lambda self: (real(self), stop()))
        with pytest.raises(Stop):
            train(data_root, tmp_path / "two")
    train(data_root, tmp_path / "two")
    one, two = ((tmp_path / n / "model.pt").read_bytes() for n in ("one", "two"))
    assert one == two
    run_stage(
        make_cam.main, "--data", data_root, "--split", "train", "--out", tmp_path / "cam",
        "--checkpoint", tmp_path / "one/model.pt", "--device", "cpu", "--amp", "off",
    )  # fmt: skip
    scores = Scores.load(tmp_path / "cam/train0.npz", 3)
    assert scores.cam.shape == (1, 12, 16) and np.isfinite(scores.cam).all()
    again = train(data_root, tmp_path / "three", "--weights", tmp_path / "one/model.pt")
    assert again["inputs"]["weights"] != made["inputs"]["weights"]


def test_a_crop_that_the_stride_does_not_divide(data_root, tmp_path):
    with pytest.raises(InputError, match=r"--crop 64 is not divisible by 14 x --grid 2; 56 is"):
        train(data_root, tmp_path / "vit", "--backbone", f"timm:{VITS[1]}")
