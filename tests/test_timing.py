"""tools/timing.py: estimates of the stages' times, and what the doctor says of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tools import budget, doctor, timing

import pytest
import torch
from test_doctor import options


def test_times_grow_with_the_work_and_shrink_with_gpus(data_root: Path) -> None:
    """A GPU's share, a core's, a list's; of an H100's rates, minutes."""
    rates = timing.Rates(1.2e14, 4e13, 16, True)
    whole = {stage: timing.seconds(stage, options(), rates) for stage in budget.STEPS}
    assert 5 * 60 < whole["train_classification"] < 30 * 60  # VOC: 11 minutes were measured
    assert 15 * 60 < whole["train_segmentation"] < 90 * 60  # 36
    assert sum(whole.values()) < 4 * 3600
    one = timing.seconds("train_classification", options(), rates) - timing.START
    four = timing.seconds("train_classification", options("--gpus", "4"), rates) - timing.START
    assert one == pytest.approx(4 * four)
    small = timing.seconds("make_cam", options("--data", str(data_root), "--split", "train"), rates)
    assert small - timing.START < whole["make_cam"] / 100
    slow = dataclasses.replace(rates, on_gpu=False, cores=2)
    fast = dataclasses.replace(slow, cores=8)
    crf = [
        timing.seconds("make_affinity_labels", options(), r) - timing.START for r in (slow, fast)
    ]
    assert crf[0] == pytest.approx(4 * crf[1])


def test_times_of_large_photographs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks and the prediction's CRF see them at --max-side, in their own shape."""
    rates = timing.Rates(1e12, 1e12, 2, False)
    times = {}
    for size in ((768, 1024), (3000, 4000)):
        facts = budget.Facts(100, size[0] * size[1], largest=size)
        monkeypatch.setattr(budget, "data_facts", lambda *_, facts=facts: facts)
        times[size] = {s: timing.seconds(s, options(), rates) for s in ("make_cam", "predict")}
    assert times[768, 1024] == pytest.approx(times[3000, 4000])
    facts = budget.Facts(200, 3000 * 4000, largest=(3000, 4000))
    twice = timing.seconds("predict", options(), rates) - timing.START
    monkeypatch.setattr(budget, "data_facts", lambda *_: facts)
    assert timing.seconds("predict", options(), rates) - timing.START == pytest.approx(2 * twice)


def test_a_full_gpu_is_no_fault_of_the_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(timing, "measure", fail)
    ((level, what, found, _),) = doctor.check_time(options())
    assert (level, what) == ("warn", "time") and "memory" in found


def test_the_rates_of_this_machine() -> None:
    rates = timing.measure(torch.device("cpu"), "off", 2)
    assert 1e8 < rates.training < 1e14 and 1e8 < rates.inference < 1e14
    (finding,) = doctor.check_time(options("--stage", "make_cam"))
    assert finding[:2] == ("ok", "time") and "make_cam" in finding[2]
