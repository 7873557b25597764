"""Rows of the benchmark's table: figures, what bounds them, and where they were measured."""

from __future__ import annotations

import functools
import os
from typing import Any

import torch

from core.run import precision
from core.run.environment import environment
from tools.benchmarking.measure import CPU, Bench, Measured, cpu_threads, seconds

PEAK_SIDE = {"cuda": 8192, "cpu": 2048}  # of the square matrices whose product is the peak


_PEAKS: dict[tuple[torch.device, torch.dtype, int], float] = {}


def matmul_peak(device: torch.device, dtype: torch.dtype, threads: int) -> float:
    """FLOP/s of a large square matrix product, the best seen in this run: the machine's ceiling."""
    n = PEAK_SIDE[device.type]
    with cpu_threads(threads):
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        seconds(lambda: a @ b, device)
        best = 2 * n**3 / min(seconds(lambda: a @ b, device) for _ in range(10))
    key = device, dtype, threads
    _PEAKS[key] = max(best, _PEAKS.get(key, 0.0))  # a busy moment must not lower the ceiling
    return _PEAKS[key]


def arithmetic(bench: Bench, flop: float, time_taken: float) -> str:
    """How far a stage of matrix products is from the peak measured in this run."""
    dtype = precision.AMP_TYPES[bench.amp] or torch.float32
    peak = matmul_peak(bench.device, dtype, bench.threads)
    name = str(dtype).removeprefix("torch.")
    rate = flop / time_taken
    return (
        f"convolutions: {rate / 1e12:.3g} TFLOP/s, {100 * rate / peak:.0f}% of the "
        f"{peak / 1e12:.3g} a {name} matmul reaches here"
    )


def row(
    bench: Bench,
    stage: str,
    measured: Measured,
    unit: str,
    bound_by: str,
    items: float = 1,
    device: torch.device = CPU,
    **extra: Any,
) -> dict[str, Any]:
    """A row of the JSON file.

    Args:
        unit: "images/s", "ms/image" or "s/step"; a call works on `items` of them.
        extra: more columns; `target` is the ratio aimed at, `target_ours` an absolute figure.
    """

    def figure(time_taken: float) -> float:
        each = time_taken / items
        return 1 / each if unit.endswith("/s") else each * (1000 if unit.startswith("ms") else 1)

    def figures(times: tuple[float, float]) -> list[float]:
        return sorted(figure(t) for t in times)

    return {
        "stage": stage,
        "device": device.type,
        "ours": figure(measured.ours),
        "reference": figure(measured.reference),
        "unit": unit,
        "ratio": measured.reference / measured.ours,
        "target": None,
        "bound_by": bound_by,
        "repeats": measured.repeats,
        "range_ours": figures(measured.spread_ours),
        "range_reference": figures(measured.spread_reference),
        "peak_memory_ours": measured.memory_ours,
        "peak_memory_reference": measured.memory_reference,
        **extra,
        **machine(bench, device),
    }


def size_row(
    bench: Bench,
    stage: str,
    sizes: tuple[float, float],
    unit: str,
    bound_by: str,
    device: torch.device = CPU,
    **extra: Any,
) -> dict[str, Any]:
    """A row of bytes (ours, reference) instead of times."""
    figures = {"ours": sizes[0], "reference": sizes[1], "unit": unit, "ratio": sizes[1] / sizes[0]}
    columns = {"target": None, "bound_by": bound_by, "repeats": 1}
    named = {"stage": stage, "device": device.type}
    return {**named, **figures, **columns, **extra, **machine(bench, device)}


@functools.cache
def _environment(device: torch.device) -> dict[str, Any]:
    return environment(device)


def machine(bench: Bench, device: torch.device) -> dict[str, Any]:
    """Columns that tell where and when a row was measured; the load is of the last minute."""
    found = _environment(device)
    return {
        "quick": bench.quick,
        "threads": bench.threads,
        "load_average": round(os.getloadavg()[0], 2),
        "machine": f"{found['device_name']}, {found['cpus']} CPUs",
        "versions": found["versions"],
        "git": found["git"],
    }
