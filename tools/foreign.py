"""Score maps in the forms of other projects: read without running what a pickle asks for, written.

| form | a file `<id>.npy` holds | of |
|---|---|---|
| irn | `{keys: (K,), cam: (K, h, w), high_res: (K, H, W)}`, keys from 0 | IRN, AdvCAM, ReCAM |
| puzzlecam | `{keys: (K + 1,), cam, hr_cam}`, keys of labels, the background first | Puzzle-CAM |
| clip-es | `{keys: (K,), attn_highres: (K, H, W)}`, keys from 0 | CLIP-ES |
| seam | `{class: (H, W), ...}`, classes from 0 | SEAM, psa |
| array | (C, H, W) of all classes, or (K, H, W) of the image's, ascending; or a grey image | |

Tensors, which IRN and Puzzle-CAM save for `cam` and IRN for `keys`, are read as arrays.
"""

import io
import math
import pickle
import pickletools
from pathlib import Path
from typing import Any

from core.data.images import open_checked, orientation
from core.data.scores import Scores, sample, strided_size, upsample
from core.errors import InputError

import numpy as np
import torch
import torch.nn.functional as F
from numpy.lib import format as npy
from torch import Tensor

MAPS = ("cam", "high_res", "hr_cam", "attn_highres")  # in a dict with `keys`, the first is taken
ENDINGS = (".npy", ".npz", ".png", ".jpg")


def _array(kind: str, shape: tuple[int, ...], code: bytes | str) -> np.ndarray:
    """NumPy's `_reconstruct`, of an empty array alone: shape and data follow, and must agree."""
    if kind != "ndarray" or tuple(shape) != (0,):
        raise pickle.UnpicklingError("no plain array")
    return np.ndarray((0,), np.int8)


def _filled(data: bytes, dtype: np.dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    """NumPy's `_frombuffer`."""
    return np.frombuffer(data, dtype).reshape(shape, order=order)


def _scalar(dtype: np.dtype, data: bytes) -> Any:
    """NumPy's `scalar`."""
    return np.frombuffer(data, dtype, 1)[0]


def _dtype(code: str, *_: object) -> np.dtype:
    """NumPy's, of numbers and objects."""
    if code[:1] not in "biufO" or not code[1:].isdecimal():
        raise pickle.UnpicklingError(f"data of type {code[:20]!r}")
    return np.dtype(code)


def _encode(text: str, encoding: str) -> bytes:
    """How the oldest pickles spell bytes."""
    return text.encode("latin-1")


def _storage(data: bytes) -> Tensor:
    """PyTorch's `_load_from_bytes`: the numbers that tensors look into."""
    try:
        storage = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # whose text is of twenty lines
        raise pickle.UnpicklingError("holds a tensor of other things than numbers") from None
    return torch.empty(0, dtype=storage.dtype).set_(storage)


def _tensor(
    flat: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object
) -> np.ndarray:
    """PyTorch's `_rebuild_tensor_v2`, of tensors that hold each of their numbers, as arrays."""
    if not isinstance(flat, Tensor) or math.prod(size) > flat.numel():
        raise pickle.UnpicklingError("no plain tensor")
    tensor = flat.as_strided(size, stride, offset)
    return (tensor.float() if tensor.is_floating_point() else tensor).numpy().copy()


KNOWN = {
    "_reconstruct": _array,
    "_frombuffer": _filled,
    "scalar": _scalar,
    "dtype": _dtype,
    "ndarray": "ndarray",
    "encode": _encode,
    "_load_from_bytes": _storage,
    "_rebuild_tensor_v2": _tensor,
    "OrderedDict": dict,  # a tensor's hooks, of which it has none
}


class _Unpickler(pickle.Unpickler):
    """Builds arrays, numbers, text, lists and dicts, with our own functions; refuses the rest.

    Tensors become arrays.
    """

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] in ("numpy", "_codecs", "torch", "collections") and name in KNOWN:
            return KNOWN[name]
        raise pickle.UnpicklingError(f"asks for {module}.{name}")


def load(path: Path) -> Any:
    """What a .npy, .npz or image file holds: an array, or a dict of arrays.

    Raises InputError for a damaged file, or a pickle that asks for more than arrays and dicts.
    """
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                found = dict(arrays)
                return found if len(found) > 1 else next(iter(found.values()))
        if path.suffix != ".npy":
            return _grey(path)
        with open(path, "rb") as file:
            version = npy.read_magic(file)
            header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, _, dtype = header(file)
            if not dtype.hasobject:
                file.seek(0)
                return npy.read_array(file, allow_pickle=False)
            data = file.read()
            if any(given == ">" for _, given, _ in pickletools.genops(data)):
                what = "big-endian numbers; save them by .astype of '<f4' or '<i8'"
                raise InputError(f"{path}: {what}")
            value = _Unpickler(io.BytesIO(data)).load()
            return value.item() if isinstance(value, np.ndarray) and shape == () else value
    except pickle.UnpicklingError as error:
        raise InputError(f"{path}: refused, its pickle {error}; save arrays and dicts") from None
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except InputError:
        raise
    except Exception:  # what damaged files raise depends on pickle, NumPy and zipfile
        raise InputError(f"{path}: damaged or not a file of arrays; make it again") from None


def _grey(path: Path) -> np.ndarray:
    """A grey image's levels, 0 to 1. Raises InputError for one with colours."""
    with open_checked(path) as image:
        if image.mode.startswith("I"):  # 16 bits, which PIL would clip
            return np.asarray(image).astype(np.float32) / 65535
        colours = np.asarray(image.convert("RGB"))
    if (colours != colours[..., :1]).any():
        raise InputError(f"{path}: has colours, a heat map? save the scores themselves, as grey")
    return colours[..., 0].astype(np.float32) / 255


def _is_turned(picture: Path) -> bool:
    """Whether EXIF exchanges the sides of a picture."""
    with open_checked(picture) as image:
        return orientation(image) > 4


def as_scores(
    value: Any,
    path: Path,
    labels: list[int],
    n_classes: int,
    size: tuple[int, int],
    which: str,
    picture: Path | None = None,
) -> Scores:
    """Scores of an image of `size` (H, W) and image-level `labels` from what `load` gave.

    Maps at stride 4 stay as they are; of full-size ones those samples are taken that upsampling
    restores (`scores.sample`); others are resized. What is below 0, as logits are, becomes 0, and
    each map that at the image's size is above 1 is divided by its maximum. Which: the entry of a
    dict to take, "" for the first of `MAPS` that is there.

    Raises InputError for another form, classes that the image does not have, NaN, or maps of the
    image before the EXIF of its file, `picture`, turned it.
    """
    try:
        classes, maps = _form(value, path, labels, n_classes, which)
        maps = np.asarray(maps, np.float32)
    except (TypeError, ValueError, OverflowError):  # of text, None, lists of several lengths
        what = "its keys or maps are no arrays of numbers"
        raise InputError(f"{path}: {what}; save one of the forms in tools/foreign.py") from None
    if len(maps) != len(classes) or (classes and (maps.ndim != 3 or not maps.size)):
        raise InputError(f"{path}: maps of shape {maps.shape} for {len(classes)} classes")
    if sorted(classes) != labels:
        raise InputError(
            f"{path}: maps of the classes {sorted(classes)}, but the image has {labels} (from 1); "
            "another order of classes, or keys from 1?"
        )
    maps = torch.from_numpy(np.ascontiguousarray(maps[np.argsort(classes)]))
    if not maps.isfinite().all():
        raise InputError(f"{path}: holds NaN or inf; make it again")
    maps = maps.clamp(min=0)
    grid, shape, turned = strided_size(size), tuple(maps.shape[1:]), size[::-1]
    looks_turned = shape in (turned, strided_size(turned)) and shape not in (size, grid)
    if len(maps) and looks_turned and picture is not None and _is_turned(picture):
        what = f"maps of shape {shape} for an image of {size} (height, width)"
        raise InputError(f"{path}: {what}; are they of the image before its EXIF turned it?")
    if len(maps) and shape == size:
        maps = sample(maps)
    elif len(maps) and shape != grid:
        maps = F.interpolate(maps[None], grid, mode="bilinear")[0]
    if len(maps):
        # Samples of walked maps may exceed 1; at the image's size rounding alone does.
        highest, seen = (each.amax((1, 2), keepdim=True) for each in (maps, upsample(maps, size)))
        maps = torch.where(seen > 1.001, maps / highest, maps)
    cam = maps.half().numpy() if len(maps) else np.zeros((0, *grid), np.float16)
    return Scores(np.array(labels, np.uint8), cam, size)


def _form(
    value: Any, path: Path, labels: list[int], n_classes: int, which: str
) -> tuple[list[int], np.ndarray]:
    """Class indices from 1, and maps, of a value in one of the forms above."""
    named = isinstance(value, dict) and ("keys" in value or not value)
    if which and not named:  # the figures would bear its name
        raise InputError(f"{path}: its maps have no names, as {which!r}; leave out --map")
    if isinstance(value, np.ndarray):
        if value.ndim not in (2, 3):
            raise InputError(f"{path}: an array of shape {value.shape}; maps are (C, H, W)")
        value = value[None] if value.ndim == 2 else value
        if len(value) == n_classes:
            return labels, value[[c - 1 for c in labels]]
        return labels, value
    if not isinstance(value, dict):
        raise InputError(f"{path}: holds {type(value).__name__}, no array or dict of arrays")
    if not value:  # of SEAM, an image without classes
        return [], np.zeros((0, 1, 1))
    if "keys" not in value:
        if not all(isinstance(key, int | np.integer) for key in value):
            raise InputError(f"{path}: a dict of {', '.join(map(str, value))[:80]} without `keys`")
        if len({np.shape(each) for each in value.values()}) > 1:
            raise InputError(f"{path}: maps of several shapes; make it again")
        return [int(key) + 1 for key in value], np.array([*value.values()])
    if not np.size(value["keys"]):  # of IRN and others, an image without classes: no maps either
        return [], np.zeros((0, 1, 1))
    name = which or next((name for name in MAPS if value.get(name) is not None), "")
    if name not in value:
        has = ", ".join(key for key in value if key != "keys")
        raise InputError(f"{path}: no map {name or MAPS[0]!r}; it has {has}: give --map")
    keys, maps = np.asarray(value["keys"]).astype(int).tolist(), np.asarray(value[name])
    if len(keys) == len(maps) + 1 and keys[0] == 0:
        return keys[1:], maps
    return [key + 1 for key in keys], maps


def to_form(scores: Scores, form: str) -> dict[Any, np.ndarray | Tensor]:
    """Scores in the form "irn", "puzzlecam" or "seam", float32.

    `cam` is a tensor, on which the random walks of the first two call `.cuda()`.
    """
    cam = torch.from_numpy(scores.cam.astype(np.float32))
    full = upsample(cam, scores.size).numpy()
    classes = scores.classes.astype(np.int64)
    if form == "irn":
        return {"keys": classes - 1, "cam": cam, "high_res": full}
    if form == "puzzlecam":
        return {"keys": np.array([0, *classes]), "cam": cam, "hr_cam": full}
    return {int(c) - 1: each for c, each in zip(classes, full, strict=True)}
