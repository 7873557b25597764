"""ResNets at output stride 16 that give every stage's features; the loading of their weights."""

from __future__ import annotations

from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from core import checkpoint
from core.errors import InputError

NAMES = ("resnet18", "resnet34", "resnet50", "resnet101")
IMAGENET = {  # the ImageNet weights of the paper are torchvision's first set
    name: torchvision.models.get_model_weights(name).IMAGENET1K_V1 for name in NAMES
}


class Backbone(nn.Module):
    """A classification network without its head, output stride 16.

    The first block of layer4 has stride 1 (conv2 and the downsample) and no dilation (SPEC
    section 2). Parameter names are torchvision's, so its checkpoints load as they are.

    Attributes:
        channels: channels of the five taps: after stem + maxpool (stride 4), layer1 (4),
            layer2 (8), layer3 (16), layer4 (16).
    """

    def __init__(self, name: str):
        super().__init__()
        if name not in NAMES:
            raise InputError(f"unknown backbone {name!r}; known: {', '.join(NAMES)}")
        self.name = name
        net = torchvision.models.get_model(name, weights=None)
        self.conv1, self.bn1, self.relu, self.maxpool = net.conv1, net.bn1, net.relu, net.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            net.layer1,
            net.layer2,
            net.layer3,
            net.layer4,
        )
        first = self.layer4[0]
        for module in first.modules():
            if isinstance(module, nn.Conv2d) and module.stride == (2, 2):
                module.stride = (1, 1)
        width = net.fc.in_features
        self.channels = [64, width // 8, width // 4, width // 2, width]

    def forward(self, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W) -> the five taps."""
        taps = [self.maxpool(self.relu(self.bn1(self.conv1(images))))]
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            taps.append(layer(taps[-1]))
        return taps


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
        made_for = state["arguments"].get("backbone")
        if made_for != name:
            raise InputError(f"{source}: holds a {made_for}, not a {name}; change --backbone")
        weights = state["weights"].items()
        state = {k[len("backbone.") :]: v for k, v in weights if k.startswith("backbone.")}
    state = {k: v for k, v in state.items() if not k.startswith("fc.")}
    checkpoint.load_weights(backbone, state, source)
    return backbone


def _download(name: str) -> dict[str, Tensor]:
    try:
        return torch.hub.load_state_dict_from_url(
            IMAGENET[name].url, map_location="cpu", check_hash=True, weights_only=True
        )
    except OSError as error:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        file = IMAGENET[name].url.rsplit("/", 1)[1]
        raise InputError(
            f"the ImageNet weights of {name} cannot be downloaded ({error}); put {file} into "
            f"{folder} or give --weights FILE"
        ) from None
