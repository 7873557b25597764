"""The long fault tests (`pytest -m faults`): at most 15 minutes on 2 quiet cores.

Every stage is stopped at a random moment, meets a full disk, loses a process and is started twice;
then it is let to the end, forked from a helper (helper.py), and what it left is compared with an
undisturbed run, byte for byte. What SIGKILL does is in test_every_write.py.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from faults.helper import well
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


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """A data set and an undisturbed run of every stage."""
    root = tmp_path_factory.mktemp("undisturbed")
    write_data_root(root / "data", n_train=16, n_val=8)
    for stage in STAGES.values():
        stage.run(root, root)
    return root


@pytest.fixture(scope="module")
def complete(inputs, helpers) -> Callable[[Stage, Path], None]:
    """Start a stage and let it to its end, with the bytes of an undisturbed run."""

    def complete(stage: Stage, out: Path) -> None:
        well(helpers[0].start(stage, inputs, out, []))
        assert not differing(contents(inputs, stage), contents(out, stage))

    return complete


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


STOPPED = {  # SIGINT as Ctrl-C sends it, to the whole process group
    "classification": signal.SIGTERM,
    "cam": signal.SIGINT,
    "affinity_labels": signal.SIGTERM,
    "affinity": signal.SIGTERM,
    "rw": signal.SIGTERM,
    "pseudo": signal.SIGINT,
    "segmentation": signal.SIGINT,
    "predictions": signal.SIGINT,
}


@pytest.mark.parametrize("name", STAGES)
def test_stopped_at_a_random_moment(inputs, tmp_path, complete, name):
    """One line, no process and no half file left; afterwards the same bytes."""
    stage, signum = STAGES[name], STOPPED[name]
    rng = np.random.default_rng(len(name))
    began = time.monotonic()
    complete(stage, tmp_path)
    length = time.monotonic() - began
    lines = None
    while lines is None:  # until the signal is faster than the stage
        clear(tmp_path, stage)
        group, delay = signum == signal.SIGINT, rng.uniform(0, length)
        lines = interrupted_start(stage, inputs, tmp_path, signum, delay, group)
    words = "interrupted" if signum == signal.SIGINT else "stopped by SIGTERM"
    assert lines == [f"{words}; the same command goes on from here"], lines
    assert not list(tmp_path.rglob(".*.tmp"))
    complete(stage, tmp_path)
    how = f"at a random moment of {length:.1f} s"
    name = "Ctrl-C" if signum == signal.SIGINT else "SIGTERM"
    row(f"{name} in {stage.script}", how, 1, "one line, no process left, then same bytes")


FULL = {  # stage, disk sizes in KiB at which different writes fail, part of the messages
    "checkpoint": ("classification", (50 << 10, 140 << 10), ".pt"),
    "log": ("segmentation", (8,), "log.jsonl"),
    "CAM": ("cam", (8, 40), ".npz"),
    "affinity label": ("affinity_labels", (16,), ".png"),
    "boundary network": ("affinity", (20 << 10,), ".pt"),
    "walked scores": ("rw", (24,), ".npz"),
    "pseudo-label": ("pseudo", (12,), ".png"),
    "prediction": ("predictions", (8, 16), ".png"),
}


@pytest.mark.parametrize("what", FULL)
def test_disk_full(inputs, tmp_path, complete, what):
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
            complete(stage, disk)
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
def test_killed_workers(inputs, tmp_path, complete, name):
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
    complete(stage, tmp_path)
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
