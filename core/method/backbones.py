"""ResNets at output stride 16 that give the features of every stage."""

from collections.abc import Mapping
from types import ModuleType

from core.errors import InputError
from core.recipe import BACKBONE

import torchvision
from torch import Tensor, nn

TORCHVISION = ("resnet18", "resnet34", "resnet50", "resnet101")
TIMM = {"resnest50": "resnest50d", "resnest101": "resnest101e", "resnest269": "resnest269e"}
NAMES = (*TORCHVISION, *TIMM)


class Backbone(nn.Module):
    """A classification network without its head, output stride 16, as the authors build it.

    The first block of layer4 has stride 1; a ResNeSt's later blocks are dilated by 2, a ResNet's
    are not. Parameter names are torchvision's or timm's: their checkpoints fit. `channels` are
    those of the five taps: after stem + maxpool (stride 4), layer1 (4), layer2 (8), layer3 (16),
    layer4 (16).

    Weights: a state dict of this backbone, e.g. from `core.run.weights.load`; None: random. Frozen:
    stay in eval mode, so that BatchNorm's statistics stay as they are. Raises InputError for an
    unknown name, or a ResNeSt without timm.
    """

    def __init__(
        self, name: str, weights: Mapping[str, Tensor] | None = None, frozen: bool = False
    ):
        super().__init__()
        if name not in NAMES:
            raise InputError(f"unknown backbone {name!r}; known: {', '.join(NAMES)}")
        self.name, self.frozen = name, frozen
        if name in TIMM:
            net = import_timm().create_model(TIMM[name], pretrained=False)
        else:
            net = torchvision.models.get_model(name, weights=None)
        self.relu = net.act1 if name in TIMM else net.relu
        self.conv1, self.bn1, self.maxpool = net.conv1, net.bn1, net.maxpool
        self.layer1, self.layer2 = net.layer1, net.layer2
        self.layer3, self.layer4 = net.layer3, net.layer4
        _remove_stride(self.layer4[0])
        if name in TIMM:  # not what timm's output_stride=16 builds
            dilation = (BACKBONE.resnest_dilation,) * 2
            for block in self.layer4[1:]:
                block.conv2.conv.dilation = block.conv2.conv.padding = dilation
        width = net.fc.in_features
        self.channels = [self.bn1.num_features, width // 8, width // 4, width // 2, width]
        if weights is not None:
            self.load_state_dict(weights, strict=False)  # old files lack num_batches_tracked
        self.train()

    def train(self, mode: bool = True) -> "Backbone":
        return super().train(mode and not self.frozen)

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


def import_timm() -> ModuleType:
    """The optional package of the ResNeSts, or an InputError that says how to get it."""
    try:
        import timm
    except ImportError:
        remedy = "pip install -r requirements-resnest.txt"
        raise InputError(f"ResNeSt backbones need timm: {remedy}") from None
    return timm
