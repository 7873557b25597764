"""ResNets at output stride 16 that give every stage's features; the loading of their weights."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import torch
import torchvision
from torch import Tensor, nn

from core import checkpoint
from core.errors import InputError

TORCHVISION = ("resnet18", "resnet34", "resnet50", "resnet101")
TIMM = {"resnest50": "resnest50d", "resnest101": "resnest101e", "resnest269": "resnest269e"}
NAMES = (*TORCHVISION, *TIMM)
IMAGENET = {  # the ImageNet weights of the paper are torchvision's first set
    name: torchvision.models.get_model_weights(name).IMAGENET1K_V1 for name in TORCHVISION
}


class Backbone(nn.Module):
    """A classification network without its head, output stride 16.

    The first block of layer4 has stride 1 (conv2 and the downsample) and no dilation (SPEC
    section 2). Parameter names are torchvision's or timm's, so their checkpoints load as they are.

    Attributes:
        channels: channels of the five taps: after stem + maxpool (stride 4), layer1 (4),
            layer2 (8), layer3 (16), layer4 (16).

    Raises:
        InputError: an unknown name, or a ResNeSt without timm.
    """

    def __init__(self, name: str):
        super().__init__()
        if name not in NAMES:
            raise InputError(f"unknown backbone {name!r}; known: {', '.join(NAMES)}")
        self.name = name
        if name in TIMM:
            net = _timm().create_model(TIMM[name], pretrained=False)
            self.relu = net.act1
        else:
            net = torchvision.models.get_model(name, weights=None)
            self.relu = net.relu
        self.conv1, self.bn1, self.maxpool = net.conv1, net.bn1, net.maxpool
        self.layer1, self.layer2 = net.layer1, net.layer2
        self.layer3, self.layer4 = net.layer3, net.layer4
        _remove_stride(self.layer4[0])
        width = net.fc.in_features
        self.channels = [self.bn1.num_features, width // 8, width // 4, width // 2, width]

    def forward(self, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W) -> the five taps."""
        taps = [self.maxpool(self.relu(self.bn1(self.conv1(images))))]
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            taps.append(layer(taps[-1]))
        return taps


def _remove_stride(block: nn.Module) -> None:
    """Stride 1 for a residual block: in ResNets convolutions halve the size, in ResNeSts pools."""
    for name, module in list(block.named_modules()):
        if isinstance(module, nn.Conv2d) and module.stride == (2, 2):
            module.stride = (1, 1)
        elif isinstance(module, nn.AvgPool2d) and name.startswith("downsample"):
            parent, _, child = name.rpartition(".")
            setattr(block.get_submodule(parent), child, nn.Identity())
        elif isinstance(module, nn.AvgPool2d):
            module.stride = 1


def _timm() -> ModuleType:
    try:
        import timm
    except ImportError:
        raise InputError(
            "ResNeSt backbones need timm: pip install -r requirements-resnest.txt"
        ) from None
    return timm


def build(name: str, weights: str | Path | None = None) -> Backbone:
    """Make a backbone.

    Args:
        weights: None for random ones, "imagenet" for torchvision's (downloaded once), or a file: a
            torchvision checkpoint, or the `model.pt` of any stage, whose backbone is taken.

    Raises:
        InputError: the file is missing, damaged or of another backbone; no download possible.
    """
    backbone = Backbone(name)
    if weights is None or str(weights) == "none":
        return backbone
    if str(weights) == "imagenet":
        source, state = "the ImageNet weights", _download(name)
    else:
        source, state = str(weights), checkpoint.load(Path(weights))
    if "weights" in state and "arguments" in state:  # a model.pt of this project
        checkpoint.check_form(state, source)
        made_for = state["arguments"].get("backbone")
        if made_for != name:
            raise InputError(f"{source}: holds a {made_for}, not a {name}; change --backbone")
        weights = state["weights"].items()
        state = {k[len("backbone.") :]: v for k, v in weights if k.startswith("backbone.")}
    state = {k: v for k, v in state.items() if not str(k).startswith("fc.")}
    checkpoint.load_weights(backbone, state, source)
    return backbone


def _download(name: str) -> dict[str, Tensor]:
    """ImageNet weights, from the local cache where they are there.

    Raises:
        InputError: saying which file to put where.
    """
    try:
        if name in TIMM:
            return _timm().create_model(TIMM[name], pretrained=True).state_dict()
        return torch.hub.load_state_dict_from_url(
            IMAGENET[name].url, map_location="cpu", check_hash=True, weights_only=True
        )
    except InputError:
        raise
    except Exception as error:  # what a failed download raises depends on three libraries
        reason = str(error).strip().split("\n")[0][:120] or type(error).__name__
        remedy = "give --weights FILE with a checkpoint of timm's"
        if name in IMAGENET:
            file, folder = IMAGENET[name].url.rsplit("/", 1)[1], Path(torch.hub.get_dir())
            remedy = f"put {file} into {folder / 'checkpoints'} or give --weights FILE"
        raise InputError(
            f"the ImageNet weights of {name} cannot be downloaded ({reason}); {remedy}"
        ) from None
