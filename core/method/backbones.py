"""Backbones that give the features of every stage: ResNets as the authors build them, timm's."""

import functools
import math
import re
from collections.abc import Mapping
from typing import Any

from core.errors import InputError, first_line
from core.method import timm_models
from core.recipe import BACKBONE

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TORCHVISION = ("resnet18", "resnet34", "resnet50", "resnet101")
TIMM = {  # with the tag of their weights
    "resnest50": "resnest50d.in1k",
    "resnest101": "resnest101e.in1k",
    "resnest269": "resnest269e.in1k",
}
NAMES = (*TORCHVISION, *TIMM)
PREFIX = "timm:"  # of the names of all other backbones
OF_TIMM = re.compile(PREFIX + r"[a-z0-9_]+(\.[a-zA-Z0-9_]+)?")  # no address: timm downloads those

# Tensors that timm's networks compute, or use in pretraining alone, but older files hold.
COMPUTED = re.compile(r"mask|coords_table|(_index|bands|periods|freqs_cos|freqs_sin|k_bias)$")


def build(
    name: str, weights: Mapping[str, Tensor] | None = None, frozen: bool = False
) -> "Backbone":
    """The backbone of a name: one of NAMES, or `timm:` and a name of timm's.

    Weights: a state dict of this backbone, e.g. from `core.run.weights.load`; None: random. Frozen:
    stays in eval mode, so that BatchNorm's statistics stay as they are. Raises InputError for an
    unknown name, one whose features are no pyramid, or timm missing.
    """
    if name in NAMES:
        return ResNet(name, weights, frozen)
    if OF_TIMM.fullmatch(name):
        return Pyramid(name, weights, frozen)
    known = f"{', '.join(NAMES)}, {PREFIX}NAME"
    raise InputError(f"unknown backbone {name[:80]!r}; known: {known}")


@functools.cache
def stride_of(name: str) -> int:
    """The stride of a backbone's class maps: what divides the sides of training views."""
    if name in NAMES:
        return BACKBONE.output_stride
    with torch.device("meta"):
        return max(build(name).strides)


class Backbone(nn.Module):
    """A classification network without its head.

    `channels` and `strides` are those of the taps: maps at rising strides, the first at 4
    (ViTs: 14 or 16). `name`: with the tag of its weights where it is timm's.
    """

    name: str
    channels: list[int]
    strides: list[int]

    def __init__(self, name: str, frozen: bool):
        super().__init__()
        self.name, self.frozen = name, frozen

    def train(self, mode: bool = True) -> "Backbone":
        super().train(mode and not self.frozen)
        for module in self.modules():
            # TinyViT keeps its biases in eval mode, with the graph of the step that is over.
            if hasattr(module, "attention_bias_cache"):
                module.training = mode
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W), normalised as ImageNet's -> the taps, (N, C, ceil(H / s), ceil(W / s))."""
        raise NotImplementedError

    def names(self) -> dict[str, str]:
        """The names of a checkpoint of the whole network -> those here of what is taken."""
        return {name: name for name in self.state_dict()}


class ResNet(Backbone):
    """A ResNet or ResNeSt at output stride 16, as the authors build it.

    The first block of layer4 has stride 1; a ResNeSt's later blocks are dilated by 2, a ResNet's
    are not. Parameter names are torchvision's or timm's: their checkpoints fit. The taps: after
    stem + maxpool (stride 4), layer1 (4), layer2 (8), layer3 (16), layer4 (16).
    """

    def __init__(
        self, name: str, weights: Mapping[str, Tensor] | None = None, frozen: bool = False
    ):
        super().__init__(name, frozen)
        if name in TIMM:
            net = timm_models.import_timm().create_model(TIMM[name], pretrained=False)
        else:
            import torchvision  # a second, which --help, refusals and half of the stages save

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
        self.strides = [4, 4, 8, 16, 16]
        if weights is not None:
            self.load_state_dict(weights, strict=False)  # old files lack num_batches_tracked
        self.train()

    def forward(self, images: Tensor) -> list[Tensor]:
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


class Pyramid(Backbone):
    """Any network of timm that gives its features, at output stride 16 where it can be built so.

    Its mean and std are those of timm's weights of this name: buffers, so that a model.pt keeps
    them. A tap at stride 2 is pooled to 4, as a ResNet's stem is. Images are padded with the mean
    colour to a multiple of the largest stride. Plain ViTs have all their taps at stride 14 or 16:
    enough for a classifier.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self, name: str, weights: Mapping[str, Tensor] | None = None, frozen: bool = False
    ):
        full = timm_models.full_name(name.removeprefix(PREFIX))
        super().__init__(PREFIX + full, frozen)
        self.net = timm_models.features(full)
        info: Any = self.net.feature_info
        self.channels, self.reductions = info.channels(), info.reduction()
        self.strides = [max(4, stride) for stride in self.reductions]
        for buffer, value in zip(("scale", "shift"), timm_models.input_scale(full), strict=True):
            self.register_buffer(buffer, value)
        self._check()
        if weights is not None:
            self.load_state_dict(weights, strict=False)
        self.train()

    def _check(self) -> None:
        """Refuse what gives anything but maps (N, C, H / s, W / s) of these strides.

        Of small images and of larger ones that are not square: some networks scale all to one size,
        or fail above one.
        """
        if any(p.dim() > 4 for p in self.net.parameters()):
            raise InputError(f"{self.name}: not for images alone: it has 3-d convolutions")
        unit = math.lcm(*self.reductions)
        pairs = list(zip(self.channels, self.reductions, strict=True))
        self.net.eval()
        for height, width in ((2, 2), (-(-320 // unit), -(-480 // unit))):
            height, width = height * unit, width * unit
            try:
                with torch.no_grad():
                    taps = self.net(self.shift.new_zeros(1, 3, height, width))
            except Exception as error:  # as of a network for images of one size
                what = f"takes no images of {width}x{height} ({first_line(error, 120)})"
                raise InputError(f"{self.name}: {what}") from None
            found = [tuple(tap.shape[1:]) for tap in taps]
            wanted = [(c, height // s, width // s) for c, s in pairs]
            last = [(height // s, width // s, c) for c, s in pairs]
            self.channels_last = found == last != wanted
            if found != wanted and not self.channels_last:
                what = f"it gives {found} of an image of {width}x{height}, not {wanted}"
                raise InputError(f"{self.name}: no pyramid of maps: {what}")

    def forward(self, images: Tensor) -> list[Tensor]:
        height, width = images.shape[2:]
        multiple = max(self.reductions)
        # In positive numbers, which exported programs divide as Python does.
        below, right = ((multiple - side % multiple) % multiple for side in (height, width))
        images = F.pad(images, (0, right, 0, below))
        taps = []
        for tap, reduction in zip(
            self.net(images * self.scale + self.shift), self.reductions, strict=True
        ):
            tap = tap.permute(0, 3, 1, 2) if self.channels_last else tap
            while reduction < 4:
                tap, reduction = F.max_pool2d(tap, 3, 2, 1), 2 * reduction
            rows, columns = ((side + reduction - 1) // reduction for side in (height, width))
            taps.append(tap[..., :rows, :columns])
        return taps

    def names(self) -> dict[str, str]:
        own = self.state_dict()
        found = {}
        for key in timm_models.whole(self.name.removeprefix(PREFIX)):
            # As timm names the parts of a pyramid: flat, as they are, or those of a ViT.
            for name in (key.replace(".", "_", 1), key, f"model.{key}"):
                if f"net.{name}" in own:
                    found[key] = f"net.{name}"
                    break
        return found

    def from_timm(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state dict of this backbone from one of timm's whole network, or one in its order.

        In its order: of other names, but with all tensors of the same shapes one after the other,
        `num_batches_tracked` left out on both sides.
        """
        whole, names = timm_models.whole(self.name.removeprefix(PREFIX)), self.names()
        if not whole.keys() & state.keys():
            theirs, ours = ({k: v for k, v in d.items() if not k.endswith("num_batches_tracked")}
                            for d in (state, whole))  # fmt: skip
            if [v.shape for v in theirs.values()] == [v.shape for v in ours.values()]:
                state = dict(zip(ours, theirs.values(), strict=True))
        # What timm's network doesn't have either: of another one, of which this is a part.
        extra = {k: v for k, v in state.items() if k not in whole and v.is_floating_point()}
        extra = {k: v for k, v in extra.items() if not COMPUTED.search(k)}
        return extra | {names[k]: v for k, v in state.items() if k in names}


def resolved(name: str) -> dict[str, Any]:
    """What run.json keeps of a backbone of timm: the name with its tag, mean and std."""
    if name in NAMES:
        return {}
    name = name.removeprefix(PREFIX)
    config = timm_models.config(name)
    full = PREFIX + timm_models.full_name(name)
    return {"backbone": full, "mean": list(config.mean), "std": list(config.std)}
