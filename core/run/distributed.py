"""One process or many: rank, device, the few collectives the stages need, the progress bar.

`torchrun --nproc-per-node N script.py ...` sets the environment this reads; without it every
function is that of a single process.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from core.errors import InputError

T = TypeVar("T")


def start(device: str) -> torch.device:
    """Join the process group torchrun announces, if any, and return this process's device.

    Args:
        device: "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:N".

    Raises:
        InputError: CUDA asked for and not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError("--device cuda: PyTorch sees no GPU; try --device cpu or tools/doctor.py")
    chosen = torch.device(device)
    if world_size() > 1:
        if chosen.type == "cuda":
            chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        # An hour: rank 0 may score or refine alone while the others wait.
        backend = "nccl" if chosen.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(hours=1))
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    return chosen


def finish() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """This process's number among all, 0 when alone."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """Number of processes, 1 when alone."""
    return int(os.environ.get("WORLD_SIZE", 1))


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


def progress(total: int, what: str, unit: str = "image", initial: int = 0) -> tqdm:
    """A progress bar with rate and ETA, shown by the main process alone."""
    return tqdm(
        total=total,
        desc=what,
        unit=unit,
        initial=initial,
        dynamic_ncols=True,
        disable=not is_main(),
    )
