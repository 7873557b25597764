"""One process or many: rank, device, the few collectives the stages need, the progress bar.

`python -m core.run.launch` or torchrun sets the environment that this reads; without it every
function is that of a single process.
"""

import os
import re
import secrets
import socket
import time
from collections.abc import Iterable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from core.errors import InputError, first_line
from core.progress import Bar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
JOINING = "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"  # the environment of one of many
SHARED = "--out must be one folder that all machines share"


def start(device: str) -> torch.device:
    """Choose this process's device and join the process group, if there are several processes.

    The one place where a device gets its index: of several processes each takes the GPU of its
    number on its machine, or, started by srun, the only one that it is shown. `run_main` leaves the
    group again. `device`: "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:N". No such
    device, or fewer GPUs than processes on this machine: an InputError.
    """
    several = world_size() > 1
    missing = [name for name in JOINING if name not in os.environ]
    if several and missing:
        what = f"WORLD_SIZE says {world_size()} processes, but {missing[0]} is not set"
        remedy = "start with core/run/launch.py or torchrun, or unset WORLD_SIZE"
        raise InputError(f"{what}; {remedy}")
    chosen = _choose(device, several)
    if chosen.type == "cuda":
        try:
            torch.cuda.set_device(chosen)
        except RuntimeError as error:  # a driver too old, a GPU in another's exclusive use
            reason = first_line(error)
            raise InputError(f"--device {chosen}: {reason}; look at nvidia-smi") from None
    if several and not dist.is_initialized():  # evaluate.py starts predict.py
        # An hour: rank 0 may score or refine alone while the others wait.
        more: dict[str, Any] = {"timeout": timedelta(hours=1)}
        if chosen.type == "cuda":
            more["device_id"] = chosen
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", **more)
    return chosen


def _choose(device: str, several: bool) -> torch.device:
    form, what = re.fullmatch(r"auto|cpu|cuda(?::([0-9]+))?", device), f"--device {device}"
    if form is None:
        raise InputError(f"--device {device!r}: give auto, cpu, cuda or cuda:N")
    if device == "cpu":  # a GPU that is there is not even looked at
        return torch.device("cpu")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto" and gpus == 0:
        return torch.device("cpu")
    if gpus == 0:
        raise InputError(f"{what}: PyTorch sees no GPU; try --device cpu or tools/doctor.py")
    here, has = local_world_size(), f"{gpus} GPU{'s' * (gpus > 1)}"
    if several and form[1]:
        remedy = "give --device cuda, and choose the GPUs with CUDA_VISIBLE_DEVICES"
        raise InputError(f"{what}: one GPU for {here} processes; {remedy}")
    if several and here > gpus and "LOCAL_WORLD_SIZE" in os.environ:  # srun's tasks are not told
        remedy = f"start {gpus} (GPUS={gpus}), or give --device cpu"
        raise InputError(f"{what}: {here} processes on this machine, which has {has}; {remedy}")
    index = int(os.environ["LOCAL_RANK"]) if several else int(form[1] or 0)
    if several and gpus == 1 and "LOCAL_WORLD_SIZE" not in os.environ:
        index = 0  # srun --gpus-per-task=1 shows each task its own
    if index >= gpus:
        raise InputError(f"{what}: this machine has {has}; the last is cuda:{gpus - 1}")
    return torch.device("cuda", index)


def finish() -> None:
    """Leave the process group, if there is one. `run_main` calls it: no stage has to."""
    if dist.is_initialized():
        # torch 2.4 joins gloo's threads with Python's lock held, for which they may wait to drop
        # their last tensors: let them.
        time.sleep(0.1)
        dist.destroy_process_group()


def rank() -> int:
    """This process's number among all, 0 when alone, whatever a RANK left over says."""
    return int(os.environ.get("RANK", 0)) if world_size() > 1 else 0


def world_size() -> int:
    """Number of processes, 1 when alone."""
    return int(os.environ.get("WORLD_SIZE", 1))


def local_world_size() -> int:
    """Number of processes on this machine, 1 when alone."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))


def is_main() -> bool:
    """Whether this process writes the run's own files and speaks."""
    return rank() == 0


def barrier() -> None:
    """Wait for the others."""
    if dist.is_initialized():
        dist.barrier()


def share(items: Sequence[T]) -> list[T]:
    """This process's part of a list: every world_size-th item from its rank on."""
    return list(items[rank() :: world_size()])


def total(value: Tensor) -> Tensor:
    """Sum of a tensor over all processes, on every process; in place."""
    if dist.is_initialized():
        dist.all_reduce(value)
    return value


def agree(value: int, device: torch.device) -> int:
    """Rank 0's integer, on every process."""
    if not dist.is_initialized():
        return value
    box = torch.tensor([value], device=device)
    dist.broadcast(box, 0)
    return int(box.item())


def take_over(tensors: Iterable[Tensor]) -> None:
    """Give every process rank 0's values; in place."""
    for tensor in tensors if dist.is_initialized() else ():
        dist.broadcast(tensor, 0)


def check_same(value: Any, what: str) -> None:
    """Make sure that `value`, a plain one, is the same on every process before work starts.

    Where it differs, as on machines that do not share `--out`, every process raises an InputError,
    which calls it `what` ("the step to go on from").
    """
    (first_host, first), *others = gather((socket.gethostname(), value))
    for number, (host, other) in enumerate(others, 1):
        if other != first:
            found = f"{first} on rank 0 ({first_host}), {other} on rank {number} ({host})"
            raise InputError(f"{what}: {found}; {SHARED}")


def check_shared(folder: Path, seconds: float = 40.0) -> None:
    """Make sure that every process sees rank 0's `folder`, which exists there.

    Rank 0 makes a file of a name nobody has asked for before, so no file system has cached that it
    is not there; the folder itself may be in an NFS cache as missing, for 30 seconds usually. An
    InputError on every process if some see another folder, or none, after `seconds`.
    """
    if not dist.is_initialized():
        return
    name = gather(f".{secrets.token_hex(8)}.tmp")[0]
    path, until = folder / name, time.monotonic() + seconds
    try:
        if is_main():
            path.touch()
        barrier()
        while not (seen := path.exists()) and time.monotonic() < until:
            time.sleep(min(1.0, seconds / 10))
        blind = [host for host, sees in gather((socket.gethostname(), seen)) if not sees]
    finally:
        if is_main():
            path.unlink(missing_ok=True)
    if blind:
        raise InputError(f"{folder}: another folder on {blind[0]} than on rank 0; {SHARED}")


def gather(value: T) -> list[T]:
    """The values of all processes, in order of rank, on every process."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def progress(total: int, what: str, unit: str = "image", done: int = 0, over: Any = None) -> Bar:
    """A progress bar with rate and ETA, of the main process alone; it may iterate `over` things."""
    shown = {"dynamic_ncols": True, "disable": not is_main()}
    return Bar(over, total=total, desc=what, unit=unit, initial=done, **shown)
