"""Two ways of doing the same thing, timed in turn on the same data, and their peak memory."""

from __future__ import annotations

import contextlib
import ctypes
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from core.run import precision

Work = Callable[[], object]
MIB = 2**20
CPU = torch.device("cpu")


@dataclass
class Bench:
    """What the stages are measured with.

    Attributes:
        size: (H, W) of the photographs. crop: side of the training views. n_images: photographs.
        repeats: timed calls of each contender; 0: what the stage thinks enough.
    """

    device: torch.device
    threads: int
    folder: Path
    batch_size: int
    repeats: int
    quick: bool
    size: tuple[int, int] = (375, 500)
    crop: int = 512
    backbone: str = "resnet50"
    n_images: int = 8

    @property
    def amp(self) -> str:
        """The autocast type of our side: what `--amp auto` means on the device."""
        return precision.amp_type("auto", self.device)


@dataclass
class Measured:
    """Median seconds of one call, the fastest and slowest call, and bytes at the peak."""

    ours: float
    reference: float
    spread_ours: tuple[float, float]
    spread_reference: tuple[float, float]
    repeats: int
    memory_ours: int | None
    memory_reference: int | None


def compare(
    bench: Bench,
    ours: Callable[[], Work],
    reference: Callable[[], Work],
    repeats: int,
    device: torch.device = CPU,
    threads: int = 1,
    once: bool = False,
) -> Measured:
    """Time two contenders interleaved: ours, reference, ours, reference ...

    Args:
        ours, reference: called once, to set up; they return the work to be timed. Peak memory is
            that of the set-up and one call together. The first call (three on a GPU, where cuDNN
            tries its algorithms) is not timed.
        threads: CPU threads of PyTorch. once: call the (very slow) reference a single time.
    """
    repeats = bench.repeats or (1 if bench.quick else repeats)
    warm_ups = 3 if device.type == "cuda" else 1
    with cpu_threads(threads):
        our_work, our_memory, _ = _first_calls(ours, device, warm_ups)
        work, memory, first = _first_calls(reference, device, 1 if once else warm_ups)
        our_times, times = [], [first] if once else []
        for _ in range(repeats):
            our_times.append(seconds(our_work, device))
            if not once:
                times.append(seconds(work, device))
    return Measured(
        statistics.median(our_times),
        statistics.median(times),
        (min(our_times), max(our_times)),
        (min(times), max(times)),
        repeats,
        our_memory,
        memory,
    )


def _first_calls(
    contender: Callable[[], Work], device: torch.device, warm_ups: int
) -> tuple[Work, int | None, float]:
    """(the work, peak bytes of set-up and one call, seconds of the last call)."""
    before = _reset_peak(device)
    work = contender()
    for number in range(warm_ups):
        if device.type == "cuda" and number == warm_ups - 1:
            torch.cuda.reset_peak_memory_stats(device)  # not what cuDNN's trials took
        last = seconds(work, device)
    peak = _peak(device)
    return work, None if before is None or peak is None else max(0, peak - before), last


def seconds(work: Work, device: torch.device = CPU) -> float:
    """Wall time of one call, until the device has done all of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


@contextlib.contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Give PyTorch `count` CPU threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _reset_peak(device: torch.device) -> int | None:
    """Forget the peak so far; bytes in use now (None where the system does not tell)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed before must not count as room
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        return None
    return _resident("VmRSS")


def _peak(device: torch.device) -> int | None:
    cuda = device.type == "cuda"
    return torch.cuda.max_memory_allocated(device) if cuda else _resident("VmHWM")


def _resident(what: str) -> int | None:
    """This process's resident bytes: VmRSS now, VmHWM at the peak since it was reset."""
    try:
        match = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    except OSError:
        return None
    return int(match[1]) * 1024 if match else None


def to_device(tensors: list[Tensor], device: torch.device) -> list[Tensor]:
    """Copies on the device, on their way while the call returns where the memory is pinned."""
    return [tensor.to(device, non_blocking=True) for tensor in tensors]


def say(line: str) -> None:
    """Progress on stderr; the table has stdout to itself."""
    print(line, file=sys.stderr, flush=True)
