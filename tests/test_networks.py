"""Shapes, strides, weights and frozen parts of the three networks."""

from __future__ import annotations

import sys
from math import prod

from core.errors import InputError
from core.method import backbones
from core.method.networks import AffinityNet, Classifier, DeepLabV3Plus
from core.run import checkpoint, optimizer, weights

import numpy as np
import pytest
import torch
import torchvision
from conftest import golden
from torch import nn


@pytest.mark.parametrize("name", backbones.NAMES)
def test_backbone_taps_and_stride(name):
    if name in backbones.TIMM:
        pytest.importorskip("timm")
    with torch.device("meta" if name in backbones.TIMM else "cpu"), torch.no_grad():
        network = backbones.build(name).eval()
        taps = network(torch.zeros(1, 3, 64, 96))
    assert [t.shape[1] for t in taps] == network.channels
    assert [64 // t.shape[2] for t in taps] == [4, 4, 8, 16, 16]
    dilations = {m.dilation for m in network.modules() if isinstance(m, nn.Conv2d)}
    late = (1, 1) if name in backbones.TORCHVISION else (2, 2)  # ResNeSts dilate in layer4
    assert dilations == {(1, 1), late}


def test_backbone_is_torchvisions_but_for_the_stride(tmp_path):
    torch.manual_seed(0)
    reference = torchvision.models.resnet50()
    torch.save(reference.state_dict(), tmp_path / "resnet50.pth")
    state = weights.load(tmp_path / "resnet50.pth", "resnet50")
    ours = backbones.build("resnet50", state).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        x = reference.maxpool(reference.relu(reference.eval().bn1(reference.conv1(images))))
        x = reference.layer3(reference.layer2(reference.layer1(x)))
        torch.testing.assert_close(ours(images)[3], x)
        reference.layer4[0].conv2.stride = reference.layer4[0].downsample[0].stride = (1, 1)
        torch.testing.assert_close(ours(images)[4], reference.layer4(x))


def test_weights_of_other_networks_are_refused(tmp_path):
    path = tmp_path / "w.pth"
    torch.save(torchvision.models.resnet34().state_dict(), path)
    with pytest.raises(InputError, match=r"w\.pth"):
        weights.load(path, "resnet18")
    network = Classifier("resnet18", 3)
    checkpoint.save_model(path, network, ["a", "b", "c"])
    with pytest.raises(InputError, match="holds a resnet18, not a resnet50"):
        weights.load(path, "resnet50")
    saved = torch.load(path, weights_only=True)
    torch.save(saved | {"background": 1}, tmp_path / "other.pt")
    with pytest.raises(InputError, match="its background is no bool"):
        weights.load(tmp_path / "other.pt", "resnet18")
    torch.save({k: v for k, v in saved.items() if k != "background"}, tmp_path / "older.pt")
    assert checkpoint.load_model(tmp_path / "older.pt", (Classifier,), None).background is True
    again = backbones.build("resnet18", weights.load(path, "resnet18"))
    for mine, theirs in zip(again.parameters(), network.backbone.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_classifier_maps_and_logits():
    network = Classifier("resnet18", 7).eval()
    assert network.classifier.bias is None
    with torch.no_grad():
        assert network(torch.zeros(2, 3, 64, 48)).shape == (2, 7, 4, 3)


@pytest.mark.parametrize("size", [(64, 64), (37, 53), (33, 40)])
def test_affinity_net_cuts_to_layer1_and_is_frozen(size):
    network = AffinityNet("resnet18").train()
    edge = network(torch.randn(2, 3, *size))
    assert edge.shape == (2, (size[0] - 1) // 4 + 1, (size[1] - 1) // 4 + 1)
    assert not any(m.training for m in network.backbone.modules())
    edge.mean().backward()
    assert all(p.grad is None for p in network.backbone.parameters())
    assert all(p.grad is not None for p in network.edge_layers.parameters())


def test_affinity_net_upsamples_between_norm_and_relu():
    network = AffinityNet("resnet18").eval()
    images = torch.randn(1, 3, 64, 64)
    features = []
    for tap, layer, f in zip(network.backbone(images), network.edge_layers, (1, 1, 2, 4, 4),
                             strict=True):  # fmt: skip
        x = nn.functional.group_norm(layer[0](tap), 4, layer[1].weight, layer[1].bias)
        features.append(nn.Upsample(scale_factor=f, mode="bilinear")(x).relu())
    torch.testing.assert_close(network(images), network.edge(torch.cat(features, 1))[:, 0])


def test_deeplab_shapes_norms_and_frozen_statistics():
    network = DeepLabV3Plus("resnet18", 6).train()
    before = network.backbone.bn1.running_mean.clone()
    logits = network(torch.randn(2, 3, 64, 80))
    assert logits.shape == (2, 6, 64, 80)
    assert torch.equal(network.backbone.bn1.running_mean, before)
    new = [m for n, m in network.named_modules() if not n.startswith("backbone")]
    assert not any(isinstance(m, nn.BatchNorm2d) for m in new)
    assert {m.num_groups for m in new if isinstance(m, nn.GroupNorm)} == {4}
    assert [m.p for m in new if isinstance(m, nn.Dropout)] == [0.5, 0.5, 0.1]
    rates = {m.dilation[0] for m in new if isinstance(m, nn.Conv2d)}
    assert rates == {1, 6, 12, 18}


def convolutions(network: nn.Module) -> dict[str, nn.Conv2d]:
    """Those of the new layers, by name."""
    modules = network.named_modules()
    return {n: m for n, m in modules if isinstance(m, nn.Conv2d) and not n.startswith("backbone")}


@pytest.mark.parametrize("build", [Classifier, DeepLabV3Plus])
def test_classifier_and_segmentation_start_kaiming_normal(build):
    torch.manual_seed(0)
    for name, module in convolutions(build("resnet50", 21)).items():
        weight = module.weight.detach()
        expected = (2 / weight[0].numel()) ** 0.5
        assert weight.std().item() == pytest.approx(expected, rel=0.05), name
        assert weight.abs().max() > 3 * expected, f"{name}: no normal distribution"


def test_affinity_net_starts_from_pytorchs_default():
    """Uniform in +-1 / sqrt(fan_in), the edge layer's bias too."""
    torch.manual_seed(0)
    found = convolutions(AffinityNet("resnet50"))
    assert len(found) == 6
    for name, module in found.items():
        bound = module.weight[0].numel() ** -0.5
        assert module.weight.abs().max() <= bound, name
        assert module.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.15), name
    assert 0 < found["edge"].bias.abs() <= 160**-0.5


def test_deeplabs_last_bias_starts_from_pytorchs_default():
    torch.manual_seed(0)
    bias = DeepLabV3Plus("resnet18", 200).decoder[-1].bias
    assert bias.abs().max() <= 1 / 16  # uniform in +-1 / sqrt(256)
    assert bias.std().item() == pytest.approx(1 / 16 / 3**0.5, rel=0.15)


def test_deeplab_upsamples_in_float32_under_autocast():
    network = DeepLabV3Plus("resnet18", 3).eval()
    coarse = []
    network.decoder.register_forward_hook(lambda *call: coarse.append(call[2]))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = network(torch.randn(1, 3, 64, 48))
    assert coarse[0].dtype == torch.bfloat16 and logits.dtype == torch.float32
    expected = torch.nn.functional.interpolate(
        coarse[0].float(), (64, 48), mode="bilinear", align_corners=True
    )
    assert torch.equal(logits, expected)


@pytest.mark.parametrize(
    ("build", "sizes"), [(Classifier, [3]), (AffinityNet, []), (DeepLabV3Plus, [4])]
)
def test_arguments_build_the_network_again(build, sizes):
    network = build("resnet18", *sizes)
    again = build(**network.arguments)
    assert again.arguments == network.arguments
    again.load_state_dict(network.state_dict())


def test_model_file_round_trip_and_refusals(tmp_path):
    path = tmp_path / "model.pt"
    network = Classifier("resnet18", 2)
    checkpoint.save_model(path, network, ["a", "b"])
    again = checkpoint.load_model(path, (Classifier,), ["a", "b"])
    assert again.classes == ["a", "b"] and not again.training
    assert torch.equal(again.classifier.weight, network.classifier.weight)
    with pytest.raises(InputError, match="other classes"):
        checkpoint.load_model(path, (Classifier,), ["a", "c"])
    with pytest.raises(InputError, match=r"holds a Classifier, which make_cam\.py takes;"):
        checkpoint.load_model(path, (AffinityNet,), None)
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    with pytest.raises(InputError, match="truncated"):
        checkpoint.load_model(path, (Classifier,), None)
    with pytest.raises(InputError, match="no such checkpoint"):
        checkpoint.load(tmp_path / "none.pt")


def test_imagenet_weights_missing_offline(monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    with pytest.raises(InputError, match=r"resnet18-f37072fd\.pth"):
        weights.load("imagenet", "resnet18")


@pytest.mark.parametrize("name", ["resnest50", "resnest101"])
def test_resnest_taps_stride_groups_and_weights(name, tmp_path):
    """timm's networks at output stride 16, in all that the stages do with a backbone."""
    timm = pytest.importorskip("timm")
    reference = timm.create_model(backbones.TIMM[name], pretrained=False).eval()
    torch.save(reference.state_dict(), tmp_path / "timm.pth")
    network = Classifier(name, 3, weights.load(tmp_path / "timm.pth", name)).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        taps = network.backbone(images)
        x = reference.maxpool(reference.act1(reference.bn1(reference.conv1(images))))
        torch.testing.assert_close(taps[0], x)
        x = reference.layer3(reference.layer2(reference.layer1(x)))
        torch.testing.assert_close(taps[3], x)
        assert AffinityNet(name)(images).shape == (1, 16, 16)
    assert [t.shape[1] for t in taps] == network.backbone.channels
    assert [64 // t.shape[2] for t in taps] == [4, 4, 8, 16, 16]
    groups = optimizer.parameter_groups(network, 1e-4, pretrained=True)
    assert sum(len(g["params"]) for g in groups) == len(list(network.parameters()))


def test_resnest_without_timm_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"requirements-timm\.txt"):
        Classifier("resnest50", 3)


def fill_by_formula(network: nn.Module, seed: int) -> int:
    """The golden's weights, a function of their place in the state dict; how many there are."""
    names = [n for n in network.state_dict() if not n.endswith("num_batches_tracked")]
    for i, name in enumerate(names):
        rng, tensor = np.random.default_rng((seed, i)), network.state_dict()[name]
        if tensor.ndim > 1:
            values = rng.standard_normal(tensor.shape) * (2 / prod(tensor.shape[1:])) ** 0.5
        elif name.endswith(("running_var", "weight")):
            values = rng.uniform(0.5, 1.5, tensor.shape)
        else:
            values = rng.standard_normal(tensor.shape) * 0.1
        tensor.copy_(torch.from_numpy(values))
    return len(names)


def test_resnest_golden():
    """The authors' ResNeSt-50 in float64, on weights that a formula gives."""
    pytest.importorskip("timm")
    g = golden("resnest50_stride16")
    network = backbones.build("resnest50").double().eval()
    with torch.no_grad():
        assert fill_by_formula(network, int(g["seed"])) == g["tensors"]
        taps = network(torch.from_numpy(g["image"]))
    for name, tap in (("layer3", taps[3]), ("layer4", taps[4])):
        expected = torch.from_numpy(g[name])
        error = (tap[:, ::16] - expected).abs().max() / (expected.max() - expected.min())
        assert error < 1e-12, f"{name} is off by {error:.1e} of its range"


@pytest.mark.parametrize(
    ("name", "blocks"), [("resnest50", 3), ("resnest101", 3), ("resnest269", 8)]
)
def test_resnest_layer4_is_dilated_after_its_first_block(name, blocks):
    pytest.importorskip("timm")
    with torch.device("meta"):
        network = backbones.build(name).eval()
        taps = network(torch.zeros(1, 3, 64, 96))
    assert taps[4].shape == (1, 2048, 4, 6) and len(network.layer4) == blocks
    for where, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            layer, _, rest = where.partition(".")
            late = layer == "layer4" and not rest.startswith("0.")
            wide = late and module.kernel_size == (3, 3)
            assert module.dilation == ((2, 2) if wide else (1, 1)), where
            assert not wide or module.padding == (2, 2), where
        if isinstance(module, nn.Conv2d | nn.AvgPool2d) and where.startswith("layer4"):
            assert module.stride in (1, (1, 1)), where
