"""tools/timing.py: estimates of the stages' times, and what the doctor says of them."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

from core import steps
from tools import budget, doctor, timing

import pytest
import torch
from conftest import REPO
from test_doctor import options

ON_AN_H100 = re.compile(r"about (an hour|a minute|\d+ minutes)[^.;]* on an H100")


@pytest.fixture(scope="module")
def minutes() -> dict[str, float]:
    """Of the steps for VOC on an H100, by their names."""
    return {s.name: timing.seconds(s.script, options(), timing.H100) / 60 for s in steps.STEPS}


def minutes_in(path: Path) -> float:
    said = ON_AN_H100.search(path.read_text().replace("\n", " "))[1]
    return {"an hour": 60, "a minute": 1}.get(said) or int(said.split()[0])


def test_the_minutes_that_the_scripts_give(minutes: dict[str, float]) -> None:
    for number, step in enumerate(steps.STEPS, 1):
        path = REPO / "scripts" / f"{number}_{step.script}.sh"
        assert minutes_in(path) == pytest.approx(minutes[step.name], abs=0.6), path.name
    assert minutes_in(REPO / "scripts" / "pipeline.sh") == pytest.approx(sum(minutes.values()), 0.1)


def test_the_minutes_of_the_readme(minutes: dict[str, float]) -> None:
    rows = re.findall(
        r"^\| .* \| ([1-8, ]+) \| .* \| (\d+) \|$", (REPO / "README.md").read_text(), re.M
    )
    assert len(rows) == 5
    each = list(minutes.values())
    for place, (scripts, said) in enumerate(rows):
        known = [each[int(number) - 1] for number in scripts.split(", ")]
        assert int(said) == pytest.approx(sum(known) - (place == 0) * each[0] / 2, abs=1)


def test_the_rates_of_an_h100_are_those_measured() -> None:
    """FLOP/s of the two heavy trainings and of the CAMs; seconds of CRFs and walk."""
    rows = json.loads((REPO / "results" / "benchmark_gpu.json").read_text())["rows"]
    found = {row["stage"]: row for row in rows if "H100" in row["machine"]}

    def tera(stage: str) -> float:
        return 1e12 * float(re.search(r"([\d.]+) TFLOP/s", found[stage]["bound_by"])[1])

    h100, shares = timing.H100, {stage: share for stage, (_, share) in timing.SHARES.items()}
    assert h100.training == pytest.approx(tera("Puzzle-CAM step"), 0.05)
    assert h100.inference == pytest.approx(tera("multi-scale CAM inference"), 0.05)
    for name, stage in (("segmentation", "train_segmentation"), ("affinity", "train_affinity")):
        assert shares[stage] * h100.training == pytest.approx(tera(f"{name} step"), 0.05)
    lattice, two, many = (
        found[f"CRF in torch, {what}"]["ours"] * 1e3 / (375 * 500)  # microseconds a pixel
        for what in (
            "lattices of an image",
            "2 x 10 iterations, 3 labels",
            "10 iterations, 21 labels",
        )
    )
    measured = {
        "make_affinity_labels": two,
        "make_pseudo_labels": lattice + (two - lattice) / 20,
        "predict": many,
    }
    for stage, microseconds in measured.items():
        assert timing.CRF[stage][True] == pytest.approx(microseconds, 0.05)
    walk = found["random walk, 94 x 125 grid"]["ours"] * 1e3 / (375 * 500)
    assert timing.WALK[True] == pytest.approx(walk, 0.05)


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
