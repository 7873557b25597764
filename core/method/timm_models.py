"""What timm says of its networks, by their names there, and the features of one."""

import difflib
import functools
from types import ModuleType
from typing import Any

from core.errors import InputError
from core.recipe import BACKBONE, DATA

import torch
from torch import Tensor, nn


def import_timm() -> ModuleType:
    """The optional package of other backbones, or an InputError that says how to get it."""
    try:
        import timm
    except ImportError:
        remedy = "pip install -r requirements-timm.txt"
        raise InputError(f"ResNeSts and timm: backbones need timm: {remedy}") from None
    return timm


@functools.cache
def config(name: str) -> Any:
    """What timm knows of the weights of a name; an InputError where it knows none."""
    timm = import_timm()
    architecture = name.split(".")[0]
    try:
        found = timm.get_pretrained_cfg(name) if timm.is_model(architecture) else None
    except RuntimeError:  # of another tag
        found = None
    if found is None:
        now = timm.models.get_deprecated_models().get(name)
        known = timm.list_models(pretrained=True)
        near = [now] if now else difflib.get_close_matches(name, known, 3, 0.5)
        hint = f"; is {' or '.join(near)} meant?" if near else ""
        raise InputError(f"timm {timm.__version__} has no model {name!r}{hint}")
    return found


def full_name(name: str) -> str:
    """A name with the tag of its weights, so that it means the same tomorrow."""
    architecture, tag = name.split(".")[0], config(name).tag
    return f"{architecture}.{tag}" if tag else architecture


def input_scale(name: str) -> tuple[Tensor, Tensor]:
    """(1, 3, 1, 1) factor and summand from ImageNet's mean and std to those of timm's weights."""
    found = config(name)
    mean, std, our_mean, our_std = (
        torch.tensor(rgb, dtype=torch.float32).view(1, 3, 1, 1)
        for rgb in (found.mean, found.std, DATA.mean, DATA.std)
    )
    return our_std / std, (our_mean - mean) / std


@functools.cache
def whole(name: str) -> dict[str, Tensor]:
    """Names and shapes of the tensors of the network with its head."""
    with torch.device("meta"):
        return import_timm().create_model(name).state_dict()


def features(name: str) -> nn.Module:
    """The network that returns all of its features, at output stride 16 where it has one."""
    timm = import_timm()
    error: Exception | None = None
    for options in ({"output_stride": BACKBONE.output_stride}, {"dynamic_img_size": True}, {}):
        how = {"pretrained": False, "features_only": True, **options}
        try:
            net = timm.create_model(name, **how)
            stages = len(net.feature_info.info)
            if max(net.feature_info.out_indices) < stages - 1:  # of some timm gives the first ones
                net = timm.create_model(name, **how, out_indices=tuple(range(stages)))
            _make_safe(net)
            return net
        except Exception as one:  # an option that it doesn't have, or no features: of any type
            error = one
    raise InputError(f"timm's {name} gives no features ({str(error)[:120]})") from None


def _make_safe(network: nn.Module) -> None:
    """Give 1x1 convolutions of stride 2 on few channels, as in RepVGG, every second pixel instead.

    Their backward pass on CPUs, channels last, writes where it must not (torch 2.14).
    """
    for module in network.modules():
        if not isinstance(module, nn.Conv2d) or module.in_channels >= 16:
            continue
        if module.kernel_size == (1, 1) and module.stride == (2, 2):
            module.stride = (1, 1)
            module.register_forward_pre_hook(_every_second)


def _every_second(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """What a convolution of 1x1 and stride 2 sees."""
    return (inputs[0][..., ::2, ::2],)
