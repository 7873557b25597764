"""The three networks: classifier, boundary network, segmentation network."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.segmentation.deeplabv3 import ASPP

from core.method.backbones import Backbone

Weights = Mapping[str, Tensor] | None  # a backbone's state dict; None: random


def _new(convolution: nn.Conv2d) -> nn.Conv2d:
    """Kaiming-normal weights, zero bias: how every layer that is not pretrained starts."""
    nn.init.kaiming_normal_(convolution.weight)
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
    return convolution


class Classifier(nn.Module):
    """ResNet and a 1x1 convolution without bias; Puzzle-CAM section 2, A = theta(F(I)).

    Args:
        n_classes: C, foreground classes. weights: the backbone's state dict; None: random.
    """

    def __init__(self, backbone: str, n_classes: int, weights: Weights = None):
        super().__init__()
        self.arguments = {"backbone": backbone, "n_classes": n_classes}
        self.backbone = Backbone(backbone, weights)
        self.classifier = _new(nn.Conv2d(self.backbone.channels[-1], n_classes, 1, bias=False))

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> class maps A (N, C, ceil(H/16), ceil(W/16)); logits are their mean."""
        return self.classifier(self.backbone(images)[-1])


class AffinityNet(nn.Module):
    """The boundary branch of IRN (Ahn et al., CVPR 2019) on a frozen backbone in eval mode."""

    def __init__(self, backbone: str, weights: Weights = None):
        super().__init__()
        self.arguments = {"backbone": backbone}
        self.backbone = Backbone(backbone, weights).requires_grad_(False).eval()
        self.edge_layers = nn.ModuleList(
            nn.Sequential(_new(nn.Conv2d(channels, 32, 1, bias=False)), nn.GroupNorm(4, 32))
            for channels in self.backbone.channels
        )
        self.edge = _new(nn.Conv2d(160, 1, 1))

    def train(self, mode: bool = True) -> AffinityNet:
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> edge logits (N, ceil(H/4), ceil(W/4)).

        Upsampling sits between GroupNorm and ReLU; sizes are cut to the layer1 tap.
        """
        with torch.no_grad():
            taps = self.backbone(images)
        height, width = taps[1].shape[2:]
        features = []
        for tap, layer, factor in zip(taps, self.edge_layers, (1, 1, 2, 4, 4), strict=True):
            feature = layer(tap)
            if factor > 1:
                feature = F.interpolate(feature, scale_factor=factor, mode="bilinear")
            features.append(F.relu(feature[..., :height, :width]))
        return self.edge(torch.cat(features, 1)).squeeze(1)


class DeepLabV3Plus(nn.Module):
    """DeepLabv3+ (Chen et al., ECCV 2018) at output stride 16, GroupNorm(4) in the new layers.

    The backbone's BatchNorm statistics are frozen; its scale and shift are trained, as in the
    authors' code.

    Args:
        n_labels: classes with the background.
    """

    def __init__(self, backbone: str, n_labels: int, weights: Weights = None):
        super().__init__()
        self.arguments = {"backbone": backbone, "n_labels": n_labels}
        self.backbone = Backbone(backbone, weights).eval()
        channels = self.backbone.channels
        self.aspp = _with_group_norm(ASPP(channels[-1], [6, 12, 18], 256))  # ends in dropout .5
        self.skip = _conv_norm_relu(channels[1], 48, 1)
        self.decoder = nn.Sequential(
            _conv_norm_relu(256 + 48, 256, 3),
            nn.Dropout(0.5),
            _conv_norm_relu(256, 256, 3),
            nn.Dropout(0.1),
            _new(nn.Conv2d(256, n_labels, 1)),
        )

    def train(self, mode: bool = True) -> DeepLabV3Plus:
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> logits (N, n_labels, H, W)."""
        _, low, _, _, high = self.backbone(images)
        skip = self.skip(low)
        context = _resize(self.aspp(high), skip.shape[2:])
        return _resize(self.decoder(torch.cat([context, skip], 1)), images.shape[2:])


def _resize(maps: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(maps, size, mode="bilinear", align_corners=True)


def _conv_norm_relu(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    convolution = _new(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False))
    return nn.Sequential(convolution, nn.GroupNorm(4, outputs), nn.ReLU(inplace=True))


def _with_group_norm(module: nn.Module) -> nn.Module:
    """Replace torchvision's BatchNorm by GroupNorm(4) and start convolutions afresh."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.GroupNorm(4, child.num_features))
        elif isinstance(child, nn.Conv2d):
            _new(child)
        else:
            _with_group_norm(child)
    return module
