"""Pretrained weights of a backbone: ImageNet's from the cache or the net, or those of a file."""

import argparse
import contextlib
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.errors import InputError, first_line
from core.method import backbones, timm_models
from core.method.backbones import PREFIX, TIMM, TORCHVISION, Pyramid
from core.method.networks import RULED_OUT, Network
from core.run import artefacts, checkpoint, distributed

import torch
from torch import Tensor

# Layers of trainings that no backbone has: a classifier, of a teacher, of self-supervision.
HEADS = re.compile("^(fc|classifier|proj|proto|pred|decoder)|aux|head", re.IGNORECASE)

SLOW = re.compile("encoder_k|momentum|target")  # what MoCo and BYOL call their network's slow copy


def load(weights: str | Path, name: str) -> dict[str, Tensor] | None:
    """The state dict of backbone `name` that --weights stands for; None for random ones.

    `weights`: "none", "imagenet" for torchvision's or timm's (downloaded once), or a file: one of
    their checkpoints (also as safetensors, below other names, or of timm's in its order), or the
    `model.pt` of any stage, also as exported safetensors, whose backbone is taken. A file that is
    missing, damaged or of another backbone is an InputError, and so is a failed download.
    """
    if str(weights) == "none":
        return None
    with torch.device("meta"):
        backbone = backbones.build(name)
    if str(weights) == "imagenet":
        source = "the ImageNet weights"
        state: dict[str, Any] = _download(backbone.name)
    else:
        source, state = str(weights), _read(Path(weights))
    own = backbone.state_dict()
    is_model = "weights" in state and "arguments" in state  # a model.pt of this project
    if is_model:
        checkpoint.check_form(state, source)
        made_for = state["arguments"].get("backbone")
        if made_for != backbone.name:
            raise InputError(f"{source}: holds a {made_for}, not a {name}; change --backbone")
    items = (state["weights"] if is_model else state).items()
    part = {str(k).removeprefix("backbone."): v for k, v in items if str(k).startswith("backbone.")}
    if is_model or part.keys() == own.keys():  # the latter: of tools/export_model.py
        state = part
    else:
        state = _find(state, backbone, source)
        if isinstance(backbone, Pyramid):
            scale, shift = timm_models.input_scale(backbone.name.removeprefix(PREFIX))
            state = backbone.from_timm(state) | {"scale": scale, "shift": shift}
        state = {k: v for k, v in state.items() if k in own or not HEADS.search(k)}
    checkpoint.check_weights(backbone, state, source)
    return state


def of(args: argparse.Namespace) -> dict[str, Tensor] | None:
    """`load` of --init, where that is given, or of --weights; says what a file gave."""
    found = load(args.init or args.weights, args.backbone)
    is_file = found is not None and args.init is None and args.weights != "imagenet"
    if args.init is not None and args.weights not in ("imagenet", "none"):
        raise InputError("--init takes the backbone's weights as well; leave --weights out")
    if is_file and distributed.is_main():
        of_timm = backbones.resolved(args.backbone)
        name = of_timm.get("backbone", args.backbone)
        what = f"{len(found or ())} tensors for the backbone {name}"
        if of_timm:  # those of the tag, which need not be the file's
            what += f" with mean {of_timm['mean']} and std {of_timm['std']}"
        print(f"{args.weights}: {what}; the other layers are newly initialised")
    return found


def take_rest(
    network: Network, path: Path | None, classes: list[str], background: bool = True
) -> None:
    """--init: take what the model.pt of a training holds beside the backbone, and say so.

    Layers of another shape or, with other classes, those that tell classes apart start again, and
    so do they where there is a `background` that the file's network has ruled out. An InputError
    where the file is none of this project's.
    """
    if path is None:
        return
    state = checkpoint.load(path)
    checkpoint.check_form(state, str(path))
    own, theirs = network.state_dict(), state["weights"]
    if not all(isinstance(v, Tensor) and v.layout == torch.strided for v in theirs.values()):
        raise InputError(f"{path}: not a model.pt of this project: its weights are no tensors")
    biases = [v for k, v in theirs.items() if k.startswith(network.of_classes or "-")]
    ruled_out = background and any(v.dim() == 1 and v[0] < RULED_OUT / 2 for v in biases)
    of_classes = network.of_classes if ruled_out or state["classes"] != classes else ()
    rest = [name for name in own if not name.startswith("backbone.")]
    fits = {k for k in rest if k in theirs and theirs[k].shape == own[k].shape}
    taken = {k: theirs[k] for k in rest if k in fits and not k.startswith(of_classes)}
    checkpoint.check_finite({k: v for k, v in theirs.items() if k in own}, str(path))
    network.load_state_dict(taken, strict=False)
    fresh = [name for name in rest if name not in taken]
    if distributed.is_main():
        words = f"newly initialised: {', '.join(fresh) or 'nothing'}"
        print(f"{path}: the backbone and {len(taken)} more tensors are taken; {words}")


def digest(args: argparse.Namespace, loaded: Mapping[str, Tensor] | None) -> str:
    """What --init or --weights stood for: the file's digest, or that of the downloaded tensors."""
    weights = str(args.init or args.weights)
    if weights not in ("none", "imagenet"):
        # --init takes the other layers as well, which is another start than --weights.
        return "init " * (args.init is not None) + artefacts.read_model(Path(weights))
    if loaded is None:
        return weights
    found = hashlib.sha256()
    for name, tensor in sorted(loaded.items()):
        found.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return f"{weights} {found.hexdigest()[:16]}"


def _read(path: Path) -> dict[str, Any]:
    """A checkpoint of torch or a file of safetensors, which its first bytes tell."""
    start = b""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        start = file.read(9)
    if start[8:] != b"{":
        state = checkpoint.load(path)
        if {"optimizer", "network", "step"} <= state.keys():
            raise InputError(f"{path}: what a training goes on from; give the model.pt beside it")
        return state
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise InputError(f"{path}: to read it, pip install safetensors") from None
    try:
        return load_file(path)
    except Exception as error:  # its own type of error, or the file system's
        what = f"not a readable file of safetensors ({first_line(error, 120)})"
        raise InputError(f"{path}: {what}; make or download it again") from None


def _find(state: dict[Any, Any], backbone: backbones.Backbone, source: str) -> dict[str, Tensor]:
    """The tensors of the network in a checkpoint that has the most of a backbone's.

    Trainings put it into a dict, `state_dict` or `teacher`, and below other names: `module.`,
    `backbone.`, `encoder_q.`. Of several that one is taken, and said, which their authors evaluate:
    the last, averaged weights or a teacher, but not the slow copy of MoCo and BYOL.
    """
    inner = {f"{o}.{k}": v for o, d in state.items() if isinstance(d, dict) for k, v in d.items()}
    flat = {str(k): v for k, v in {**state, **inner}.items() if isinstance(v, Tensor)}
    names = [name for name in backbone.names() if not name.endswith("num_batches_tracked")]
    end = f".{names[0]}"
    prefixes = [name.removesuffix(names[0]) for name in flat if f".{name}".endswith(end)]
    found = {prefix: sum(prefix + name in flat for name in names) for prefix in prefixes[::-1]}
    prefix = max(found, key=lambda p: (found[p], SLOW.search(p) is None), default="")
    if found.get(prefix, 0) < len(names) / 2:  # of another network, or of other names
        return flat
    if list(found.values()).count(len(names)) > 1 and distributed.is_main():
        print(f"{source}: of the networks in it that of {prefix + names[0]!r} is taken")
    return {k.removeprefix(prefix): v for k, v in flat.items() if k.startswith(prefix)}


def imagenet_url(name: str) -> str:
    """The address of the ImageNet weights of the paper, torchvision's first set."""
    from torchvision.models import get_model_weights

    return get_model_weights(name).IMAGENET1K_V1.url


def _download(name: str) -> dict[str, Tensor]:
    """ImageNet weights, from the local cache or the net; an InputError says what to put where."""
    try:
        if name in TIMM or name.startswith(PREFIX):
            full = TIMM.get(name, name.removeprefix(PREFIX))
            return timm_models.import_timm().create_model(full, pretrained=True).state_dict()
        return torch.hub.load_state_dict_from_url(
            imagenet_url(name), map_location="cpu", check_hash=True, weights_only=True
        )
    except InputError:
        raise
    except Exception as error:  # what a failed download raises depends on three libraries
        reason = first_line(error, 120)
        remedy = "give --weights FILE with a checkpoint of timm's"
        if name in TORCHVISION:
            file, folder = imagenet_url(name).rsplit("/", 1)[1], Path(torch.hub.get_dir())
            remedy = f"put {file} into {folder / 'checkpoints'} or give --weights FILE"
        what = f"the ImageNet weights of {name} cannot be downloaded"
        raise InputError(f"{what} ({reason}); {remedy}") from None
