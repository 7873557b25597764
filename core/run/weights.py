"""Pretrained weights of a backbone: ImageNet's from the cache or the net, or those of a file."""

from pathlib import Path
from typing import Any

from core.errors import InputError
from core.method.backbones import TIMM, TORCHVISION, Backbone, import_timm
from core.run import artefacts, checkpoint

import torch
import torchvision
from torch import Tensor

# The ImageNet weights of the paper are torchvision's first set.
IMAGENET = {n: torchvision.models.get_model_weights(n).IMAGENET1K_V1 for n in TORCHVISION}


def load(weights: str | Path, name: str) -> dict[str, Tensor] | None:
    """The state dict of backbone `name` that --weights stands for; None for random ones.

    `weights`: "none", "imagenet" for torchvision's or timm's (downloaded once), or a file: one of
    their checkpoints, or the `model.pt` of any stage, whose backbone is taken. A file that is
    missing, damaged or of another backbone is an InputError, and so is a failed download.
    """
    if str(weights) == "none":
        return None
    with torch.device("meta"):
        backbone = Backbone(name)
    if str(weights) == "imagenet":
        source = "the ImageNet weights"
        state: dict[str, Any] = _download(name)
    else:
        source, state = str(weights), checkpoint.load(Path(weights))
    if "weights" in state and "arguments" in state:  # a model.pt of this project
        checkpoint.check_form(state, source)
        made_for = state["arguments"].get("backbone")
        if made_for != name:
            raise InputError(f"{source}: holds a {made_for}, not a {name}; change --backbone")
        items = state["weights"].items()
        state = {k.removeprefix("backbone."): v for k, v in items if k.startswith("backbone.")}
    state = {k: v for k, v in state.items() if not str(k).startswith("fc.")}
    checkpoint.check_weights(backbone, state, source)
    return state


def digest(weights: str) -> str:
    """What --weights stands for: its keyword, or the digest of the file."""
    return weights if weights in ("none", "imagenet") else artefacts.read_model(Path(weights))


def _download(name: str) -> dict[str, Tensor]:
    """ImageNet weights, from the local cache or the net; an InputError says what to put where."""
    try:
        if name in TIMM:
            return import_timm().create_model(TIMM[name], pretrained=True).state_dict()
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
        what = f"the ImageNet weights of {name} cannot be downloaded"
        raise InputError(f"{what} ({reason}); {remedy}") from None
