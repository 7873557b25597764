"""Checkpoints: written whole or not at all, loaded without pickle, checked before use."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import InputError
from core.files import atomic_path


def save(path: Path, value: dict[str, Any]) -> None:
    """Write a dict of tensors and plain values with `torch.save`, all of it or nothing."""
    with atomic_path(path) as temporary:
        try:
            torch.save(value, temporary)
        except RuntimeError as error:  # torch's zip writer hides the OSError of a full disk
            message = f"{path}: cannot be written ({str(error).splitlines()[0]}); is the disk full?"
            raise InputError(message) from None


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, tensors and plain values only (`weights_only=True`).

    Raises:
        InputError: missing, truncated, not a checkpoint, or holding anything else.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint")
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except (
        RuntimeError,
        pickle.UnpicklingError,
        EOFError,
        OSError,
        ValueError,
        KeyError,
        AttributeError,
        TypeError,
        IndexError,
        zipfile.BadZipFile,
        MemoryError,
    ):
        raise InputError(f"{path}: truncated or not a checkpoint; make it anew") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: not a checkpoint of this project or of torchvision")
    return value


def load_weights(module: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Load a state dict after checking its names and shapes.

    Raises:
        InputError: naming the first parameter that does not fit.
    """
    own = module.state_dict()
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    unknown = [k for k in state if k not in own]
    if missing or unknown:
        name, what = (missing[0], "lacks") if missing else (unknown[0], "has an unknown")
        raise InputError(f"{source}: weights of another network: it {what} {name!r}")
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor) or tensor.shape != own[name].shape:
            shape = tuple(getattr(tensor, "shape", ()))
            raise InputError(
                f"{source}: {name!r} is {shape}, the network needs {tuple(own[name].shape)}; "
                "another backbone or number of classes?"
            )
    module.load_state_dict(state, strict=False)


def save_model(path: Path, network: nn.Module, classes: list[str]) -> None:
    """Write `model.pt`: weights, the arguments that rebuild the network, the class names."""
    save(
        path,
        {
            "network": type(network).__name__,
            "arguments": network.arguments,
            "classes": list(classes),
            "weights": network.state_dict(),
        },
    )


def load_model(path: Path, network_class: type[nn.Module], classes: list[str] | None) -> nn.Module:
    """Rebuild the network of a `model.pt` in eval mode.

    Args:
        classes: the class names of the data set; None takes the checkpoint's as they are.

    Raises:
        InputError: a foreign or damaged file, another kind of network, other classes.
    """
    state = load(path)
    if not {"network", "arguments", "classes", "weights"} <= state.keys():
        raise InputError(f"{path}: not a model.pt of this project")
    wanted = network_class.__name__
    if state["network"] != wanted:
        raise InputError(f"{path}: holds a {state['network']}, this needs a {wanted}")
    if classes is not None and list(state["classes"]) != list(classes):
        theirs, ours = len(state["classes"]), len(classes)
        raise InputError(
            f"{path}: trained on other classes ({theirs}, the data set has {ours}); use the "
            "data root it was trained on"
        )
    try:
        network = network_class(**state["arguments"])
    except TypeError:
        raise InputError(f"{path}: its network arguments are damaged; make it anew") from None
    load_weights(network, state["weights"], str(path))
    network.classes = list(state["classes"])
    return network.eval()
