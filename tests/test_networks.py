"""Shapes, strides, weights and frozen parts of the three networks."""

from __future__ import annotations

import sys

import pytest
import torch
import torchvision
from torch import nn

from core.errors import InputError
from core.method import backbones
from core.method.networks import AffinityNet, Classifier, DeepLabV3Plus
from core.run import checkpoint, training, weights


@pytest.mark.parametrize("name", backbones.TORCHVISION)
def test_backbone_taps_and_stride(name):
    network = backbones.Backbone(name).eval()
    with torch.no_grad():
        taps = network(torch.zeros(1, 3, 64, 96))
    assert [t.shape[1] for t in taps] == network.channels
    assert [64 // t.shape[2] for t in taps] == [4, 4, 8, 16, 16]
    assert all(m.dilation == (1, 1) for m in network.modules() if isinstance(m, nn.Conv2d))


def test_backbone_is_torchvisions_but_for_the_stride(tmp_path):
    torch.manual_seed(0)
    reference = torchvision.models.resnet50()
    torch.save(reference.state_dict(), tmp_path / "resnet50.pth")
    state = weights.load(tmp_path / "resnet50.pth", "resnet50")
    ours = backbones.Backbone("resnet50", state).eval()
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
    again = backbones.Backbone("resnet18", weights.load(path, "resnet18"))
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


def test_new_layers_are_kaiming_normal():
    torch.manual_seed(0)
    network = DeepLabV3Plus("resnet50", 21)
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d) and not name.startswith("backbone"):
            fan_in = module.weight[0].numel()
            expected = (2 / fan_in) ** 0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=0.05), name


def test_model_file_round_trip_and_refusals(tmp_path):
    path = tmp_path / "model.pt"
    network = Classifier("resnet18", 2)
    checkpoint.save_model(path, network, ["a", "b"])
    again = checkpoint.load_model(path, Classifier, ["a", "b"])
    assert again.classes == ["a", "b"] and not again.training
    assert torch.equal(again.classifier.weight, network.classifier.weight)
    with pytest.raises(InputError, match="other classes"):
        checkpoint.load_model(path, Classifier, ["a", "c"])
    with pytest.raises(InputError, match="holds a Classifier"):
        checkpoint.load_model(path, AffinityNet, None)
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    with pytest.raises(InputError, match="truncated"):
        checkpoint.load_model(path, Classifier, None)
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
    groups = training.parameter_groups(network, 1e-4, pretrained=True)
    assert sum(len(g["params"]) for g in groups) == len(list(network.parameters()))


def test_resnest_without_timm_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"requirements-resnest\.txt"):
        Classifier("resnest50", 3)
