"""The three networks: classifier, boundary network, segmentation network."""

from collections.abc import Mapping

from core.errors import InputError
from core.method import backbones
from core.recipe import AFFINITY, SEGMENTATION

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RULED_OUT = -1e4  # the background's bias where there is no background
Weights = Mapping[str, Tensor] | None  # a backbone's state dict; None: random


def _kaiming_normal_(convolution: nn.Conv2d) -> nn.Conv2d:
    """Draw the weights again, Kaiming normal; a bias stays as PyTorch started it."""
    nn.init.kaiming_normal_(convolution.weight)
    return convolution


class Network(nn.Module):
    """A backbone and what `arguments` says: type(network)(**arguments) builds it again.

    `of_classes`: how the names of those parameters begin that have a row for each class.
    """

    of_classes: tuple[str, ...] = ()

    def __init__(self, backbone: str, weights: Weights, frozen: bool = False, **sizes: int):
        super().__init__()
        self.backbone = backbones.build(backbone, weights, frozen)
        self.arguments = {"backbone": self.backbone.name, **sizes}


def _tap_at_4(backbone: backbones.Backbone, purpose: str) -> int:
    """The last tap at stride 4, on which `purpose` needs its details."""
    if 4 not in backbone.strides:
        what = f"its maps have the strides {backbone.strides}, {purpose} needs one at 4"
        raise InputError(f"{backbone.name}: {what}; give this stage another --backbone")
    return len(backbone.strides) - 1 - backbone.strides[::-1].index(4)


class Classifier(Network):
    """Backbone and a 1x1 convolution without bias to the C foreground classes, A = theta(F(I))."""

    of_classes = ("classifier.",)

    def __init__(self, backbone: str, n_classes: int, weights: Weights = None):
        super().__init__(backbone, weights, n_classes=n_classes)
        convolution = nn.Conv2d(self.backbone.channels[-1], n_classes, 1, bias=False)
        self.classifier = _kaiming_normal_(convolution)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> class maps A (N, C, ceil(H/16), ceil(W/16)); logits are their mean.

        The stride is that of the backbone's last tap, 16 but for some of timm's.
        """
        return self.classifier(self.backbone(images)[-1])


class AffinityNet(Network):
    """The boundary branch of IRN (Ahn et al., CVPR 2019) on a frozen backbone in eval mode.

    The new layers, unlike those of the other two networks, start as PyTorch starts them.
    """

    def __init__(self, backbone: str, weights: Weights = None):
        super().__init__(backbone, weights, frozen=True)
        self.low = _tap_at_4(self.backbone, "the boundary network")
        self.backbone.requires_grad_(False)
        width = AFFINITY.edge_channels
        self.edge_layers = nn.ModuleList()
        for channels in self.backbone.channels:
            convolution = nn.Conv2d(channels, width, 1, bias=False)
            norm = nn.GroupNorm(AFFINITY.norm_groups, width)
            self.edge_layers.append(nn.Sequential(convolution, norm))
        self.edge = nn.Conv2d(len(self.edge_layers) * width, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> edge logits (N, ceil(H/4), ceil(W/4)).

        Upsampling, by stride / 4, sits between GroupNorm and ReLU; sizes are cut to those at stride
        4.
        """
        with torch.no_grad():
            taps = self.backbone(images)
        height, width = taps[self.low].shape[2:]
        features = []
        for tap, layer, stride in zip(taps, self.edge_layers, self.backbone.strides, strict=True):
            feature = layer(tap)
            if stride > 4:
                feature = F.interpolate(feature, scale_factor=stride // 4, mode="bilinear")
            features.append(F.relu(feature[..., :height, :width]))
        return self.edge(torch.cat(features, 1)).squeeze(1)


class DeepLabV3Plus(Network):
    """DeepLabv3+ (Chen et al., ECCV 2018) at output stride 16, GroupNorm in the new layers.

    `n_labels` counts the background. The backbone's BatchNorm statistics are frozen; its scale and
    shift are trained, as in the authors' code.
    """

    of_classes = ("decoder.4.",)

    def __init__(self, backbone: str, n_labels: int, weights: Weights = None):
        from torchvision.models.segmentation.deeplabv3 import ASPP  # `ResNet` says why here

        super().__init__(backbone, weights, frozen=True, n_labels=n_labels)
        self.low = _tap_at_4(self.backbone, "the decoder")
        low, high = self.backbone.channels[self.low], self.backbone.channels[-1]
        width, narrow = SEGMENTATION.channels, SEGMENTATION.skip_channels
        self.aspp = _adapted(ASPP(high, list(SEGMENTATION.aspp_rates), width))
        self.skip = _conv_norm_relu(low, narrow, 1)
        self.decoder = nn.Sequential(
            _conv_norm_relu(width + narrow, width, 3),
            nn.Dropout(SEGMENTATION.decoder_dropouts[0]),
            _conv_norm_relu(width, width, 3),
            nn.Dropout(SEGMENTATION.decoder_dropouts[1]),
            _kaiming_normal_(nn.Conv2d(width, n_labels, 1)),
        )

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> logits (N, n_labels, H, W), float32 under autocast too."""
        taps = self.backbone(images)
        skip = self.skip(taps[self.low])
        context = _resize(self.aspp(taps[-1]), skip.shape[2:])
        return _resize(self.decoder(torch.cat([context, skip], 1)).float(), images.shape[2:])

    @torch.no_grad()
    def rule_out_background(self) -> None:
        """Give label 0 a bias with which its probability is 0 and no gradient reaches it."""
        *_, bias = self.decoder.parameters()
        bias[0] = RULED_OUT


def _resize(maps: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(maps, size, mode="bilinear", align_corners=True)


def _conv_norm_relu(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    norm = nn.GroupNorm(SEGMENTATION.norm_groups, outputs)
    return nn.Sequential(_kaiming_normal_(convolution), norm, nn.ReLU(inplace=True))


def _adapted(module: nn.Module) -> nn.Module:
    """torchvision's ASPP with GroupNorm for BatchNorm, the recipe's dropout and Kaiming weights."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.GroupNorm(SEGMENTATION.norm_groups, child.num_features))
        elif isinstance(child, nn.Dropout):
            child.p = SEGMENTATION.aspp_dropout
        elif isinstance(child, nn.Conv2d):
            _kaiming_normal_(child)
        else:
            _adapted(child)
    return module
