"""Checkpoints: written whole or not at all, loaded without pickle, checked before use."""

import inspect
import pickle
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.data.datasets import check_name, class_difference
from core.errors import InputError, first_line, out_of_memory
from core.files import atomic_path
from core.run.main import signals_held

import torch
from torch import Tensor, nn

MAX_CROP = 16384  # what options.side allows
READERS = {
    "Classifier": "make_cam.py",
    "AffinityNet": "make_random_walk.py",
    "DeepLabV3Plus": "predict.py",
}


def save(path: Path, value: dict[str, Any]) -> None:
    """Write a dict of tensors and plain values with `torch.save`, all of it or nothing."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        try:
            with signals_held():  # given a path it would write the temporary name into the file
                torch.save(value, file)
        except RuntimeError as error:  # torch's zip writer hides a full disk
            if error.__context__ is not None:
                raise error.__context__ from None
            message = f"{path}: cannot be written ({first_line(error)}); is the disk full?"
            raise InputError(message) from None


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, tensors and plain values only (`weights_only=True`).

    One that is missing, truncated, no checkpoint or holds anything else is an InputError.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint")
    try:
        with open(path, "rb") as file:
            start = file.read(60)
        is_zip = start[:2] == b"PK"  # torch's old format has no check sums
        if is_zip:
            with zipfile.ZipFile(path) as archive:
                size = sum(member.file_size for member in archive.infolist())
                if size > path.stat().st_size or archive.testzip():  # torch ignores check sums
                    raise zipfile.BadZipFile
        with warnings.catch_warnings():  # about pickle protocols and sparse tensors
            warnings.simplefilter("ignore")
            value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what a damaged file raises depends on torch, pickle and zipfile
        if out_of_memory(error):  # or a damaged file asks for more than there is
            raise InputError(f"{path}: too little memory to load it, or damaged") from None
        what = "truncated or not a checkpoint; make it again"
        line = start.decode(errors="ignore").partition("\n")[0]
        if start.isascii() and line.isprintable() and line:  # an error's page, a pointer of Git LFS
            what = f"truncated or not a checkpoint; it begins {line!r}; make or download it again"
        elif isinstance(error, pickle.UnpicklingError) and (is_zip or "GLOBAL" in str(error)):
            what = "truncated or not a checkpoint of tensors alone; save its state_dict"
        raise InputError(f"{path}: {what}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: not a checkpoint of this project or of torchvision")
    return value


def check_form(state: dict[str, Any], source: str) -> None:
    """Refuse what has not the form of a `model.pt`: a part is missing or of another type."""
    parts = {"network": str, "arguments": dict, "classes": list, "weights": dict}
    right = all(isinstance(state.get(name), kind) for name, kind in parts.items())
    if not right or not all(isinstance(key, str) for key in state["weights"]):
        raise InputError(f"{source}: not a model.pt of this project")
    if any(not isinstance(v, int | float | str) for v in state["arguments"].values()):
        raise InputError(f"{source}: not a model.pt of this project: its arguments are no numbers")
    crop = state.get("crop", 0)  # older files have none
    if not isinstance(crop, int) or not 0 <= crop <= MAX_CROP:
        raise InputError(f"{source}: not a model.pt of this project: its crop is no side")
    if not isinstance(state.get("background", True), bool):  # older files have none
        raise InputError(f"{source}: not a model.pt of this project: its background is no bool")
    if not 1 <= len(state["classes"]) <= 254:
        raise InputError(f"{source}: holds {len(state['classes'])} classes; 1 to 254 are possible")
    for name in state["classes"]:
        check_name(name if isinstance(name, str) else "", Path(source), "class")


def check_weights(module: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Compare names and shapes with a network's; an InputError names the first that differs."""
    own = module.state_dict()
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    unknown = [k for k in state if k not in own]
    if missing or unknown:
        name, what = (missing[0], "lacks") if missing else (unknown[0], "has an unknown")
        raise InputError(f"{source}: weights of another network: it {what} {name!r}")
    for name, tensor in state.items():
        plain = isinstance(tensor, Tensor) and tensor.layout == torch.strided
        if not plain or tensor.shape != own[name].shape:
            shape, needed = tuple(getattr(tensor, "shape", ())), tuple(own[name].shape)
            what = f"{name!r} is {shape}, the network needs {needed}"
            raise InputError(f"{source}: {what}; another backbone or number of classes?")
        if tensor.is_floating_point() != own[name].is_floating_point():
            raise InputError(f"{source}: {name!r} holds {tensor.dtype}, not {own[name].dtype}")
    check_finite(state, source)


def check_finite(state: dict[str, Tensor], source: str) -> None:
    """Refuse NaN and inf in weights and BatchNorm's statistics, naming the first tensor of some."""
    finite = torch.stack([tensor.isfinite().all() for tensor in state.values()]).tolist()
    if not all(finite):
        name = list(state)[finite.index(False)]
        raise InputError(f"{source}: {name!r} holds NaN or inf; take an earlier checkpoint")


def save_model(
    path: Path, network: nn.Module, classes: list[str], crop: int = 0, background: bool = True
) -> None:
    """Write `model.pt`: finite weights, the arguments that rebuild the network, the class names.

    `crop`: side of the views that it was trained on; 0: not known. `background`: whether a pixel
    may be of no class.
    """
    weights = network.state_dict()
    check_finite(weights, str(path))
    weights = {name: tensor.cpu() for name, tensor in weights.items()}  # of no GPU's number
    state = {"network": type(network).__name__, "arguments": network.arguments}
    known = {"classes": list(classes), "crop": crop, "background": background}
    save(path, state | known | {"weights": weights})


def load_model(
    path: Path, kinds: Sequence[type[nn.Module]], classes: list[str] | None
) -> nn.Module:
    """Rebuild the network of a `model.pt`, one of `kinds`, in eval mode.

    It bears `classes`, `crop` and `background` as `save_model` has them. `classes`: the class names
    of the data set; None takes the checkpoint's as they are. A foreign or damaged file, another
    kind of network and other classes are InputErrors.
    """
    state = load(path)
    check_form(state, str(path))
    network_class = next((kind for kind in kinds if kind.__name__ == state["network"]), None)
    if network_class is None:
        wanted = " or a ".join(kind.__name__ for kind in kinds)
        script = READERS.get(state["network"])
        what = f"holds a {state['network']}{f', which {script} takes' if script else ''}"
        raise InputError(f"{path}: {what}; this needs a {wanted}")
    if classes is not None and list(state["classes"]) != list(classes):
        raise InputError(f"{path}: {class_difference(state['classes'], classes)}")
    try:
        known = inspect.signature(network_class).parameters.keys() - {"weights"}
        if not state["arguments"].keys() <= known:
            raise ValueError(f"unknown arguments: {', '.join(state['arguments'])[:80]}")
        with torch.device("meta"):  # shapes alone: nothing says how much memory it would take
            skeleton = network_class(**state["arguments"])
    except (InputError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(f"{path}: its network cannot be built ({error})") from None
    check_weights(skeleton, state["weights"], str(path))
    network = network_class(**state["arguments"])
    network.load_state_dict(state["weights"], strict=False)
    bears = {"classes": list(state["classes"]), "crop": state.get("crop", 0)}
    bears["background"] = state.get("background", True)
    for name, value in bears.items():
        setattr(network, name, value)
    return network.eval()
