"""The long fault tests (`pytest -m faults`): at most 15 minutes on 2 quiet cores.

Every stage is killed at random moments until enough kills have landed; then it is let to the end,
and what it left is compared with an undisturbed run, byte for byte.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from faults.stages import (
    SIGNAL_STATUS,
    STAGES,
    Stage,
    can_mount,
    contents,
    differing,
    end,
    finish,
    loaders,
    pool_workers,
    remount,
    row,
    session,
    small_disk,
    stamp,
    wait_for_start,
    wait_gone,
)

import numpy as np
import pytest
from conftest import write_data_root

pytestmark = pytest.mark.faults
KILLS = 4  # a stage: 32 in all
INTERRUPTS = 1  # a stage with worker processes


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """A data set and an undisturbed run of every stage."""
    root = tmp_path_factory.mktemp("undisturbed")
    write_data_root(root / "data", n_train=16, n_val=8)
    for stage in STAGES.values():
        stage.run(root, root)
    return root


@pytest.fixture(scope="module")
def seconds_of(inputs, tmp_path_factory) -> Callable[[str], float]:
    """How long a stage works after its run.json is there, as a process; measured once."""

    @functools.cache
    def seconds(name: str) -> float:
        stage, out = STAGES[name], tmp_path_factory.mktemp("timed")
        process = stage.start(inputs, out)
        assert wait_for_start(process, out / stage.folders[0] / "run.json", 0)
        began = time.monotonic()
        assert finish(process) == (0, [])
        assert not differing(contents(inputs, stage), contents(out, stage))
        return time.monotonic() - began

    return seconds


def interrupted_start(
    stage: Stage, inputs: Path, out: Path, signum: int, delay: float, group: bool = False
) -> list[str] | None:
    """Start the stage, send a signal `delay` seconds after it begins to work.

    Returns what it said; None if it was done before.
    """
    record = out / stage.folders[0] / "run.json"
    before = stamp(record)
    process = stage.start(inputs, out)
    if wait_for_start(process, record, before):
        time.sleep(delay)
    status, lines = end(process, signum, group)
    assert not wait_gone(process.pid), f"{stage.script}: processes left after {signum.name}"
    if status == 0 or json.loads(record.read_text())["finished"]:
        return None
    assert status == SIGNAL_STATUS[signum], lines
    return lines


def clear(out: Path, stage: Stage) -> None:
    for path in [p for folder in stage.folders for p in (out / folder).glob("*") if p.is_file()]:
        path.unlink()


@pytest.mark.parametrize("name", STAGES)
def test_killed_at_random_moments(inputs, tmp_path, seconds_of, name):
    """SIGKILL and SIGTERM in turn; afterwards the bytes are those of an undisturbed run."""
    stage = STAGES[name]
    rng = np.random.default_rng(len(name))
    length = seconds_of(name)
    landed, rounds, leftovers = [], 0, 0
    while len(landed) < KILLS:
        signum = (signal.SIGKILL, signal.SIGTERM)[len(landed) % 2]
        delay = rng.uniform(0, length / 2)  # of what is left: every start goes on from the last
        lines = interrupted_start(stage, inputs, tmp_path, signum, delay)
        if lines is None:  # it was faster than the signal: compare, then start over
            assert not differing(contents(inputs, stage), contents(tmp_path, stage))
            clear(tmp_path, stage)
            rounds += 1
            continue
        if signum == signal.SIGKILL:  # Python's own process that outlives it, to clean up
            lines = [line for line in lines if "resource_tracker" not in line]
        words = ["stopped by SIGTERM; the same command goes on from here"]
        assert lines == ([] if signum == signal.SIGKILL else words), lines
        landed.append(signum)
        found = list(tmp_path.rglob(".*.tmp"))
        assert signum == signal.SIGKILL or leftovers or not found, "SIGTERM left half a file"
        leftovers = len(found)
    assert finish(stage.start(inputs, tmp_path)) == (0, [])
    assert not differing(contents(inputs, stage), contents(tmp_path, stage))
    for signum in (signal.SIGKILL, signal.SIGTERM):
        row(f"{signum.name} in {stage.script}", f"at a random moment of {length:.1f} s",
            landed.count(signum), f"same bytes ({rounds + 1} completions)")  # fmt: skip


@pytest.mark.parametrize(
    "name", ["cam", "affinity_labels", "rw", "pseudo", "segmentation", "predictions"]
)
def test_interrupted_at_random_moments(inputs, tmp_path, seconds_of, name):
    """Ctrl-C, to the whole process group: one line, no process left, then the same bytes."""
    stage = STAGES[name]
    rng = np.random.default_rng(len(name))
    length = seconds_of(name)
    landed = 0
    while landed < INTERRUPTS:
        delay = rng.uniform(0, length / 2)
        lines = interrupted_start(stage, inputs, tmp_path, signal.SIGINT, delay, group=True)
        if lines is None:
            clear(tmp_path, stage)
            continue
        assert lines == ["interrupted; the same command goes on from here"], lines
        assert not list(tmp_path.rglob(".*.tmp"))
        landed += 1
    assert finish(stage.start(inputs, tmp_path)) == (0, [])
    assert not differing(contents(inputs, stage), contents(tmp_path, stage))
    row(f"Ctrl-C in {stage.script}", f"at a random moment of {length:.1f} s", landed,
        "one line, no process left, then same bytes")  # fmt: skip


FULL = {  # stage, disk sizes in KiB at which different writes fail, part of the messages
    "checkpoint": ("classification", (50 << 10, 140 << 10), ".pt"),
    "log": ("segmentation", (4,), "log.jsonl"),
    "CAM": ("cam", (8, 40), ".npz"),
    "affinity label": ("affinity_labels", (16,), ".png"),
    "boundary network": ("affinity", (20 << 10,), ".pt"),
    "walked scores": ("rw", (24,), ".npz"),
    "pseudo-label": ("pseudo", (12,), ".png"),
    "prediction": ("predictions", (8, 16), ".png"),
}


@pytest.mark.parametrize("what", FULL)
def test_disk_full(inputs, tmp_path, what):
    """Disks that fill up at one write or another; then they grow and the run goes on."""
    if not can_mount(tmp_path / "disk"):
        pytest.skip("mounting a small disk needs root")
    name, sizes, message = FULL[what]
    stage = STAGES[name]
    said = set()
    for kib in sizes:
        with small_disk(tmp_path / "disk", kib) as disk:
            status, lines = finish(stage.start(inputs, disk))
            assert status == 1 and len(lines) == 1 and message in lines[0], (kib, lines)
            assert "No space left" in lines[0] or "disk full" in lines[0], (kib, lines)
            assert not list(disk.rglob(".*.tmp"))
            said.add(lines[0].split(": ")[1].rsplit("/", 1)[-1])
            remount(disk, "size=1g")
            assert finish(stage.start(inputs, disk)) == (0, [])
            assert not differing(contents(inputs, stage), contents(disk, stage))
    how = f"tmpfs of {', '.join(map(str, sizes))} KiB; failed at {', '.join(sorted(said))}"
    row(f"disk full in {stage.script}", how, len(sizes), "one line, status 1, then same bytes")


WORKERS = {
    "cam": (loaders, "a loader process was killed"),
    "segmentation": (loaders, "a loader process was killed"),
    "affinity_labels": (pool_workers, "a worker process was killed"),
    "pseudo": (pool_workers, "a worker process was killed"),
    "predictions": (pool_workers, "a worker process was killed"),
}


@pytest.mark.parametrize("name", WORKERS)
def test_killed_workers(inputs, tmp_path, name):
    """A loader or CRF process is killed at a random moment: one line, then the same bytes."""
    stage = STAGES[name]
    find, message = WORKERS[name]
    rng = np.random.default_rng(len(name))
    landed = unharmed = 0
    while landed < 2 and unharmed < 10:
        process = stage.start(inputs, tmp_path)
        while not (workers := find(process.pid)) and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3) / 2**unharmed)  # sooner, if it was too late before
        if workers and workers[0] in [p.pid for p in session(process.pid)]:
            os.kill(workers[0], signal.SIGKILL)
        status, lines = finish(process)
        assert not wait_gone(process.pid)
        if status == 0:  # its work was done already
            unharmed += 1
            clear(tmp_path, stage)
            continue
        assert status == 1 and len(lines) == 1 and message in lines[0], lines
        landed += 1
    assert finish(stage.start(inputs, tmp_path)) == (0, [])
    assert not differing(contents(inputs, stage), contents(tmp_path, stage))
    row(f"{find.__name__.replace('_', ' ')} killed in {stage.script}", "SIGKILL", landed,
        "one line, status 1, then same bytes")  # fmt: skip
    assert landed


def test_second_process_on_every_stage(inputs, tmp_path):
    """While one process holds a stage's directory, the same command is refused at once."""
    for stage in STAGES.values():
        record = tmp_path / stage.folders[0] / "run.json"
        process = stage.start(inputs, tmp_path)
        assert wait_for_start(process, record, 0)
        os.kill(process.pid, signal.SIGSTOP)  # it stays where it is
        status, lines = finish(stage.start(inputs, tmp_path))
        os.kill(process.pid, signal.SIGCONT)
        assert status == 1 and len(lines) == 1 and "another process is writing" in lines[0], lines
        assert finish(process) == (0, [])
        assert json.loads(record.read_text())["finished"]
        assert not differing(contents(inputs, stage), contents(tmp_path, stage))
    row("second process on a directory", "the same command twice, every stage", len(STAGES),
        "refused in one line, the first unharmed")  # fmt: skip
