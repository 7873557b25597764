"""Two ways of doing the same thing, timed in turn on the same data: a row of the table."""

import collections
import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from core.run import precision
from core.run.environment import environment

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

Work = Callable[[], object]  # an iterator that it returns is gone through
Row = dict[str, Any]
Rows = Iterator[Row]
PATIENCE = 60  # seconds for the timed calls of a row
PEAK_SIDE = {"cuda": 8192, "cpu": 2048}  # of the square matrices whose product is the peak


@dataclasses.dataclass
class Bench:
    """What the stages are measured with, and how.

    Attributes:
        size: (H, W) of the photographs. crop: side of the training views. n_images: photographs.
        repeats: timed calls of each contender; 0: 3, and up to 10 while PATIENCE lasts.
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
    def cuda(self) -> bool:
        """Whether the device is a GPU."""
        return self.device.type == "cuda"

    @property
    def amp(self) -> str:
        """The autocast type of our side: what `--amp auto` means on the device."""
        return precision.amp_type("auto", self.device)

    @property
    def one_core(self) -> "Bench":
        """The same on one core of the CPU."""
        return dataclasses.replace(self, device=torch.device("cpu"), threads=1)

    def compare(
        self,
        stage: str,
        ours: Work,
        reference: Work,
        unit: str,
        bound_by: str | Callable[[float], str],
        note: str = "",
        items: int = 1,
        multiple: int = 1,
        **more: Any,
    ) -> Row:
        """The row of two contenders, timed in turn: ours, reference, ours, reference ...

        They set themselves up in their first call, which is not timed (on a GPU three are not:
        cuDNN tries its algorithms). Peak memory, of GPUs alone, is that of set-up and one call.

        Args:
            unit: "images/s", "ms/image", "s/step" or "s/run"; a call works on `items` of them.
            bound_by: what limits ours; a function tells it from the seconds that a call takes.
            multiple: how many calls the reference would need for all of its work.
            more: columns; `target` is the ratio aimed at, `target_ours` the figure.
        """
        torch.set_num_threads(self.threads)
        more["peak_memory_ours"] = self._first_calls(ours)
        more["peak_memory_reference"] = self._first_calls(reference)
        times, began = [], time.monotonic()
        for number in range(self.repeats or 10):
            if self.repeats or number < 3 or time.monotonic() - began < PATIENCE:
                times.append([self.seconds(ours), self.seconds(reference)])
        each = np.array(times) * (1, multiple) / items
        figures = {"images/s": 1 / each, "ms/image": 1000 * each}.get(unit, each)
        if callable(bound_by):
            bound_by = bound_by(np.median(times, 0)[0])
        return self.row(stage, figures, unit, bound_by, note, **more)

    def row(
        self, stage: str, figures: np.ndarray, unit: str, bound_by: str, note: str, **more: Any
    ) -> Row:
        """A row of the JSON file: (n, 2) figures, ours and the reference's, and more columns."""
        ours, reference = np.median(figures, 0).tolist()
        low, high = figures.min(0).tolist(), figures.max(0).tolist()
        ratio = ours / reference if unit.endswith("/s") else reference / ours
        found = environment(self.device)
        machine = f"{found['device_name']}, {found['cpus']} CPUs"
        row = {"stage": stage, "device": self.device.type, "ours": ours, "reference": reference}
        row |= {"unit": unit, "ratio": ratio, "target": None, "bound_by": bound_by}
        row |= {"repeats": len(figures), "range_ours": [low[0], high[0]]}
        row |= {"range_reference": [low[1], high[1]], **more, "note": note, "quick": self.quick}
        if self.quick:  # the targets are of the full sizes
            row |= {"target": None, "target_ours": None}
        row |= {"threads": self.threads, "load_average": round(os.getloadavg()[0], 2)}
        return {**row, "machine": machine, "versions": found["versions"], "git": found["git"]}

    def _first_calls(self, work: Work) -> int | None:
        """Set up and warm up; bytes at the peak of the last call, on a GPU."""
        if not self.cuda:
            self.seconds(work)
            return None
        before = torch.cuda.memory_allocated(self.device)
        for _ in range(3):
            torch.cuda.reset_peak_memory_stats(self.device)  # not what cuDNN's trials took
            self.seconds(work)
        return torch.cuda.max_memory_allocated(self.device) - before

    def seconds(self, work: Work) -> float:
        """Wall time of one call, until the device has done all of it."""
        synchronize = torch.cuda.synchronize if self.cuda else torch.cpu.synchronize
        synchronize(self.device)
        began = time.perf_counter()
        result = work()
        if isinstance(result, Iterator):
            collections.deque(result, maxlen=0)
        synchronize(self.device)
        return time.perf_counter() - began

    def arithmetic(self, flop: float, time_taken: float) -> str:
        """How far a stage of matrix products is from the peak measured in this run."""
        dtype = precision.AMP_TYPES[self.amp] or torch.float32
        n = PEAK_SIDE[self.device.type]
        a, b = (torch.randn(n, n, device=self.device, dtype=dtype) for _ in range(2))
        peak = 2 * n**3 / min(self.seconds(lambda: a @ b) for _ in range(30))
        name, rate = str(dtype).removeprefix("torch."), flop / time_taken
        return (
            f"convolutions: {rate / 1e12:.3g} TFLOP/s, {100 * rate / peak:.0f}% of the "
            f"{peak / 1e12:.3g} a {name} matmul reaches here"
        )


def count_flop(make: Callable[[], nn.Module], *shapes: tuple[int, ...]) -> float:
    """FLOP of a network's matrix products, in training backwards too: counted, not computed."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = make()
        for shape in shapes:
            maps = network(torch.empty(shape))
            if network.training:
                maps.sum().backward()
    return counter.get_total_flops()
