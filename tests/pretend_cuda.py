"""A GPU that is not there: tensors that say `cuda:0`, and compute on the CPU with real values.

Inside `with pretend_cuda(root, capability) as log:` there is one GPU, as far as PyTorch can tell:

* an operator that gets tensors of both devices raises, as on a GPU;
* autocast follows CUDA's lists of operators, GradScaler and the fused optimisers run;
* `log.waits` names every place where the host waits for the device: `.item()`, `.cpu()`, `nonzero`,
  boolean indices, blocking copies such as `torch.tensor(..., device=CUDA)`.

It cannot see what a GPU's kernels lack, nor cuDNN, NCCL, streams, memory and time. It leans on
private names of PyTorch: tried with 2.4.1 and 2.14.1, on a machine without a GPU. Say `CUDA`, with
its index: PyTorch 2.4 would take a bare "cuda" for the CPU here.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map_only

CUDA = torch.device("cuda", 0)
aten = torch.ops.aten

# The host has to know a value, or how many values there are, before it can go on.
WAITING = {
    aten._local_scalar_dense.default: "item",
    aten.nonzero.default: "nonzero",
    aten.masked_select.default: "masked_select",
    aten.equal.default: "equal",
    aten._unique2.default: "unique",
    aten.unique_consecutive.default: "unique",
    aten.bincount.default: "bincount",
    aten.repeat_interleave.Tensor: "repeat_interleave",
}
COPIES = {aten._to_copy.default, aten.copy_.default}
INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
BOTH_DEVICES = COPIES | INDEXING | {aten._has_compatible_shallow_copy_type.default}


class Wait(NamedTuple):
    """What the host waited in, and where: the project's two innermost lines, `a.py:1 < b.py:2`."""

    kind: str
    where: str


class Log:
    """The waits since the start or the last `clear`. Lines are those of files below `root`."""

    def __init__(self, root: Path):
        self.root = root
        self.waits: list[Wait] = []

    def clear(self) -> None:
        self.waits.clear()

    def count(self, kind: str = "", where: str = "") -> int:
        """How many waits are of this kind and have this text in their lines."""
        return sum(kind in (wait.kind, "") and where in wait.where for wait in self.waits)

    def wait(self, kind: str) -> None:
        """Note that the host waits here."""
        lines, frame = [], sys._getframe()
        while frame is not None and len(lines) < 2:
            path = Path(frame.f_code.co_filename)
            is_ours = self.root in path.parents and "site-packages" not in path.parts
            if is_ours and path != Path(__file__):
                lines.append(f"{path.relative_to(self.root)}:{frame.f_lineno}")
            frame = frame.f_back
        self.waits.append(Wait(kind, " < ".join(lines) or "PyTorch"))


_log = Log(Path())  # of the innermost `pretend_cuda`
# Shape and type of every tensor (node and number of the output) that an operator took: `_backward`
# sums broadcast gradients to them, as the engine does, which keeps them where Python cannot look.
_seen: dict[tuple[Any, int], tuple[torch.Size, torch.dtype]] = {}


class Pretended(torch.Tensor):
    """A tensor that says it is on the GPU, around `inner`, which is on the CPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> Pretended:
        place = {}
        if inner.layout == torch.strided:
            place = {"strides": inner.stride(), "storage_offset": inner.storage_offset()}
        with torch.inference_mode(inner.is_inference()):
            new = torch.Tensor._make_wrapper_subclass(
                cls, inner.shape, dtype=inner.dtype, device=CUDA, **place
            )
        new.inner = inner
        return new

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _dispatch(func, args, kwargs or {})

    def __repr__(self) -> str:
        return f"Pretended({self.inner!r})"

    def new_tensor(self, data: Any, **options: Any) -> torch.Tensor:
        # PyTorch 2.4 would leave it on the CPU.
        return torch.tensor(data, **{"dtype": self.dtype, "device": CUDA, **options})

    def tolist(self) -> list:
        _log.wait("tolist")
        return self.inner.tolist()

    def numpy(self, **_: Any) -> None:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu()")


class _Mode(TorchDispatchMode):
    """Catches what no pretended tensor is part of yet: factories and copies of CPU tensors."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        leaves = tree_leaves((args, kwargs))
        if any(isinstance(leaf, Pretended) or _is_cuda(leaf) for leaf in leaves):
            return _dispatch(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


def _is_cuda(device: Any) -> bool:
    return isinstance(device, torch.device) and device.type == "cuda"


def _dispatch(func, args, kwargs):
    """Compute on the inner tensors, by the rules of CUDA."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    composite = torch._C.DispatchKey.CompositeImplicitAutograd
    is_composite = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), composite)
    is_inference = torch.is_inference_mode_enabled() or any(t.is_inference() for t in tensors)
    # Autograd takes an operator such as `to` apart, inference mode hands it over whole.
    if is_inference and is_composite:
        with _Mode():
            return func._op_dk(composite, *args, **kwargs)
    for tensor in tensors:
        if tensor.grad_fn is not None:
            _seen[tensor.grad_fn, tensor.output_nr] = tensor.shape, tensor.dtype
    to_cuda = from_cuda = any(isinstance(tensor, Pretended) for tensor in tensors)
    if func is aten.copy_.default:
        from_cuda, to_cuda = (isinstance(tensor, Pretended) for tensor in args[1::-1])
    elif kwargs.get("device") is not None:
        to_cuda = _is_cuda(kwargs["device"])
        kwargs = {**kwargs, "device": torch.device("cpu")}
        kwargs.pop("pin_memory", None)  # which asks a driver
    on_cpu = any(tensor.dim() and not isinstance(tensor, Pretended) for tensor in tensors)
    if from_cuda and on_cpu and func not in BOTH_DEVICES:
        raise RuntimeError(f"{func}: Expected all tensors on one device, found cuda:0 and cpu")
    _note_waits(func, args, kwargs, from_cuda, to_cuda)
    inner_args, inner_kwargs = tree_map_only(Pretended, lambda t: t.inner, (args, kwargs))
    out = func(*inner_args, **inner_kwargs)
    if not to_cuda:
        return out
    out = tree_map_only(torch.Tensor, Pretended, out)
    return return_and_correct_aliasing(func, args, kwargs, out) if tensors else out


def _note_waits(func, args, kwargs, from_cuda: bool, to_cuda: bool) -> None:
    if func in COPIES and from_cuda != to_cuda:
        waits = not (kwargs.get("non_blocking") or args[2:3] == (True,))
        if from_cuda:
            _log.wait("copy to the CPU" if waits else "copy to the CPU that nobody waits for")
        elif waits:
            _log.wait("blocking copy to the GPU")
    elif func in INDEXING and to_cuda:
        for index in args[1]:
            if index is not None and not isinstance(index, Pretended):
                _log.wait("index from the CPU")
            elif index is not None and index.dtype in (torch.bool, torch.uint8):
                _log.wait("boolean index")
    elif func in WAITING and from_cuda and kwargs.get("output_size") is None:
        _log.wait(WAITING[func])


@torch.no_grad()
def _backward(tensor: torch.Tensor) -> None:
    """`Tensor.backward` of a scalar in Python: the engine in C++ asks a driver for streams.

    In the engine's order, so that sums of gradients round alike. No hooks, no higher orders.
    """
    if not isinstance(tensor, Pretended):
        torch.autograd.backward(tensor)
        return
    root = tensor.grad_fn
    waiting, slots, found = collections.Counter(), collections.Counter({root: 1}), [root]
    for node in found:
        for following, slot in node.next_functions:
            if following is not None:
                found += [following] * (following not in slots)
                slots[following] = max(slots[following], slot + 1)
                waiting[following] += 1
    gradients = {root: [torch.ones_like(tensor)]}
    ready = [root]
    while ready:
        node = max(ready, key=lambda each: each._sequence_nr())
        ready.remove(node)
        incoming = gradients.pop(node, None)
        if hasattr(node, "variable"):
            leaf = node.variable
            if incoming is not None:
                gradient = incoming[0].sum_to_size(leaf.shape).to(leaf.dtype)
                leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient
            continue
        outgoing = _step_back(node, incoming) if incoming is not None else ()
        for i, (following, slot) in enumerate(node.next_functions):
            if following is None:
                continue
            if i < len(outgoing) and outgoing[i] is not None:
                shape, dtype = _seen.get((following, slot), (outgoing[i].shape, outgoing[i].dtype))
                gradient = outgoing[i].sum_to_size(shape).to(dtype)
                sums = gradients.setdefault(following, [None] * slots[following])
                sums[slot] = gradient if sums[slot] is None else sums[slot] + gradient
            waiting[following] -= 1
            if not waiting[following]:
                ready.append(following)
    _seen.clear()


def _step_back(node: Any, gradients: list[torch.Tensor | None]) -> tuple[torch.Tensor | None, ...]:
    """The gradients of a node's inputs, from those of its outputs as far as they are used."""
    try:
        found = getattr(node, "apply", node)(*gradients)
    except TypeError as error:
        if "arguments, got" not in str(error):
            raise
        return _step_back(node, [*gradients, None])
    return found if isinstance(found, tuple) else (found,)


class _Stream:
    def synchronize(self) -> None:
        _log.wait("synchronize")

    def wait_stream(self, _: Any) -> None: ...


def _replacements(capability: tuple[int, int]) -> Iterator[tuple[Any, str, Any]]:
    """(Where, name, value) of what answers in the place of a driver."""
    cuda = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        # What the real one does first: it refuses a device without an index.
        "set_device": lambda device: torch.cuda._utils._get_device_index(device),
        "get_device_capability": lambda *_: capability,
        "get_device_name": lambda *_: "pretended GPU",
        "is_bf16_supported": lambda *_, **__: True,
        "is_current_stream_capturing": lambda: False,
        "memory_allocated": lambda *_: 0,
        "max_memory_allocated": lambda *_: 0,
        "reset_peak_memory_stats": lambda *_: None,
        "mem_get_info": lambda *_: (70 << 30, 80 << 30),
        "manual_seed_all": lambda *_: None,
        "synchronize": lambda *_: _log.wait("synchronize"),
        "Stream": _Stream,
        "current_stream": lambda *_: _Stream(),
        "set_stream": lambda *_: None,
    }
    yield from ((torch.cuda, name, value) for name, value in cuda.items())
    # Module.to then changes what is in a parameter, and the optimiser keeps knowing it.
    yield torch.__future__, "_swap_module_params_on_conversion", True
    yield torch.Tensor, "backward", _backward
    yield torch.Tensor, "pin_memory", lambda tensor, *_: tensor
    save, run = torch.save, threading.Thread.run

    def save_inner(value: Any, *rest: Any) -> None:
        save(tree_map_only(Pretended, lambda tensor: tensor.inner, value), *rest)

    def run_pretending(thread: threading.Thread) -> None:
        with _pretending():
            run(thread)

    yield torch, "save", save_inner
    yield threading.Thread, "run", run_pretending


@contextlib.contextmanager
def _pretending() -> Iterator[None]:
    """What each thread needs for itself."""
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=CUDA) becomes a copy
    try:
        with _Mode():
            yield
    finally:
        torch._C._set_only_lift_cpu_tensors(False)


def _set_device_guard() -> None:
    """Have autograd ask for the stream of a tensor where no driver is asked in turn."""
    if hasattr(torch._C, "_ensureCUDADeviceGuardSet"):
        torch._C._ensureCUDADeviceGuardSet()
        return
    # PyTorch 2.4 has no call for it: put the CPU's guard in CUDA's place of the table.
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    table = (ctypes.c_void_p * 2).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    table[1] = table[0]


@contextlib.contextmanager
def pretend_cuda(root: Path, capability: tuple[int, int] = (9, 0)) -> Iterator[Log]:
    """Inside, `torch.cuda` is one GPU of that compute capability; yields the `Log`."""
    global _log
    before, _log = _log, Log(root)
    _set_device_guard()
    try:
        # cuDNN's operators have no form for the CPU.
        with contextlib.ExitStack() as stack, torch.backends.cudnn.flags(enabled=False):
            for where, name, value in _replacements(capability):
                stack.enter_context(mock.patch.object(where, name, value))
            stack.enter_context(_pretending())
            yield _log
    finally:
        torch.use_deterministic_algorithms(False)  # if a stage was asked for it
        _seen.clear()
        _log = before
