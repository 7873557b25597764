"""The short fault tests: one or two of each kind. The long ones are in tests/faults/."""

from __future__ import annotations

import json
import os
import resource
import signal
import time
from pathlib import Path

from core.errors import InputError
from core.method import losses
from core.run.main import AGAIN

import pytest
import torch
from faults.stages import (
    STAGES,
    can_mount,
    contents,
    differing,
    end,
    finish,
    loaders,
    pool_workers,
    remount,
    row,
    small_disk,
    wait_for,
    wait_gone,
)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A folder on which a small disk can be mounted."""
    if not can_mount(tmp_path / "disk"):
        pytest.skip("mounting a small disk needs root")
    return tmp_path / "disk"


def test_sigterm_then_sigkill_then_complete(inputs, tmp_path):
    """Two ends in one run: the third start gives the bytes of the undisturbed run."""
    stage = STAGES["classification"]
    first = stage.start(inputs, tmp_path)
    wait_for(tmp_path / "classification/last.pt", first)
    status, lines = end(first, signal.SIGTERM)
    assert (status, lines) == (143, [f"stopped by SIGTERM; {AGAIN}"])
    assert not list(tmp_path.rglob(".*.tmp"))
    second = stage.start(inputs, tmp_path)
    time.sleep(0.3)
    end(second, signal.SIGKILL)
    (tmp_path / "classification/.last.pt.1.tmp").write_bytes(b"half")  # where a kill may leave it
    stage.run(inputs, tmp_path)
    assert not differing(contents(inputs, stage), contents(tmp_path, stage))
    row("SIGTERM and SIGKILL, one run", "`kill` after the first checkpoint", 2, "same bytes")


FULL = {  # stage, KiB of the disk, what is there before the error, part of the message
    "checkpoint": ("classification", 140 << 10, "classification/last.pt", "last.pt"),
    "log": ("classification", 8, None, "log.jsonl"),
    "CAM": ("cam", 24, None, ".npz"),
}


@pytest.mark.parametrize("what", FULL)
def test_disk_full(inputs, disk, what):
    """No space: one line, status 1, nothing half-written; with space the run goes on."""
    name, kib, survivor, message = FULL[what]
    stage = STAGES[name]
    with small_disk(disk, kib):
        status, lines = finish(stage.start(inputs, disk))
        assert status == 1 and len(lines) == 1 and message in lines[0], lines
        assert "No space left" in lines[0] or "disk full" in lines[0]
        assert not list(disk.rglob(".*.tmp"))
        if survivor is not None:
            assert torch.load(disk / survivor, weights_only=True)["step"] > 0
        remount(disk, "size=1g")
        stage.run(inputs, disk)
        assert not differing(contents(inputs, stage), contents(disk, stage))
    row(f"disk full at a {what}", f"tmpfs of {kib} KiB", 1, "one line, status 1, then same bytes")


def test_size_limited_write(inputs, tmp_path):
    """What needs no root: a limit on the size of files, which a checkpoint exceeds."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10 << 20, 10 << 20))

    stage = STAGES["classification"]
    status, lines = finish(stage.start(inputs, tmp_path, preexec_fn=limit))
    assert status == 1 and len(lines) == 1 and "last.pt" in lines[0], lines
    assert not list(tmp_path.rglob(".*.tmp"))
    stage.run(inputs, tmp_path)
    assert not differing(contents(inputs, stage), contents(tmp_path, stage))
    row("write refused by the system", "RLIMIT_FSIZE of 10 MiB", 1, "one line, then same bytes")


def test_killed_loader_and_a_second_process(inputs, tmp_path):
    """While a training runs, a second start is refused; then its loader process is killed."""
    stage = STAGES["classification"]
    more = ("--workers", 1, "--epochs", 400)
    process = stage.start(inputs, tmp_path, *more)
    wait_for(tmp_path / "classification/last.pt", process)
    with pytest.raises(InputError, match="another process is writing there"):
        stage.run(inputs, tmp_path, *more)
    (worker,) = loaders(process.pid)
    os.kill(worker, signal.SIGKILL)
    status, lines = finish(process)
    assert status == 1 and len(lines) == 1 and "a loader process was killed" in lines[0], lines
    assert not wait_gone(process.pid)
    row("second process on a directory", "the same command twice", 1, "refused, first unharmed")
    row("loader process killed", "SIGKILL", 1, "one line, status 1, no process left")


def test_killed_crf_worker(inputs, tmp_path):
    stage = STAGES["pseudo"]
    slow = ("--crf-iterations", 3000)
    process = stage.start(inputs, tmp_path, *slow)
    until = time.monotonic() + 60
    while len(workers := pool_workers(process.pid)) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(workers[0], signal.SIGKILL)
    status, lines = finish(process)
    assert status == 1 and len(lines) == 1 and "a worker process was killed" in lines[0], lines
    assert not wait_gone(process.pid)
    row("CRF process killed", "SIGKILL", 1, "one line, status 1, no process left")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "SIGKILL"])
def test_no_process_is_left(inputs, tmp_path, signum):
    """Ctrl-C goes to all processes of the terminal, SIGKILL to the stage's own alone."""
    stage = STAGES["pseudo"]
    process = stage.start(inputs, tmp_path, "--crf-iterations", 3000, "--workers", 2)
    until = time.monotonic() + 60
    while len(pool_workers(process.pid)) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    status, lines = end(process, signum, group=signum == signal.SIGINT)
    if signum == signal.SIGINT:
        assert (status, lines) == (130, ["interrupted; the same command goes on from here"])
    assert not wait_gone(process.pid)
    row(signum.name, "sent to the group" if status > 0 else "sent to the parent", 1,
        "no process left")  # fmt: skip


def test_read_only_directory(inputs, disk):
    with small_disk(disk, 1024):
        remount(disk, "ro")
        status, lines = finish(STAGES["cam"].start(inputs, disk))
    assert status == 1 and len(lines) == 1
    assert "cannot be written (Read-only file system)" in lines[0]
    row("read-only output", "tmpfs mounted read-only", 1, "one line, status 1")


BACKWARDS = """
import datetime, time
began, real = time.time(), datetime.datetime
behind = lambda: 2 * began - 3600 * next(hours)
hours = iter(range(10**6))
time.time = behind

class Backwards(real):
    @classmethod
    def now(cls, tz=None):
        return real.fromtimestamp(began - 3600 * next(hours), tz)

datetime.datetime = Backwards
"""


def test_clock_going_backwards(inputs, tmp_path):
    """The clock falls by an hour at every look: the same bytes, and a sensible duration."""
    (tmp_path / "sitecustomize.py").write_text(BACKWARDS)
    stage = STAGES["classification"]
    process = stage.start(inputs, tmp_path, env={"PYTHONPATH": str(tmp_path)})
    assert finish(process) == (0, [])
    assert not differing(contents(inputs, stage), contents(tmp_path, stage))
    record = json.loads((tmp_path / "classification/run.json").read_text())
    assert 0 < record["seconds"] < 600
    row("clock going backwards", "time.time and datetime.now fall at each call", 1, "same bytes")


def test_diverging_training_names_step_terms_and_checkpoint(inputs, tmp_path):
    """A learning rate that no network survives."""
    message = r"not finite at step \d+ \(loss (nan|inf).*; (no checkpoint|the last good checkpoint)"
    with pytest.raises(
        InputError, match=f"{message}|weights or BatchNorm's statistics are not finite after step"
    ):
        STAGES["classification"].run(inputs, tmp_path, "--lr", 1e6)
    row("loss NaN or inf", "--lr 1e6", 1, "stops: step, terms, last good checkpoint")


def test_fp16_overflow_of_gradients_is_no_error(inputs, tmp_path, monkeypatch):
    """Scaled gradients that overflow fp16: steps are left out and the scale falls."""
    original = losses.classification
    monkeypatch.setattr(losses, "classification", lambda *a: original(*a) * 1e4)
    stage = STAGES["classification"]
    stage.run(inputs, tmp_path, "--amp", "fp16", "--lr", 1e-6, "--epochs", 1)
    state = torch.load(tmp_path / "classification/last.pt", weights_only=True)
    assert state["scaler"]["scale"] < 65536
    assert all(value.isfinite().all() for value in state["network"].values())
    row("fp16 gradients overflow", "loss times 10,000", 1, "steps left out, training goes on")


@pytest.mark.parametrize("option", [["--deterministic"], []], ids=["deterministic", "default"])
def test_twice_the_same_bytes(inputs, tmp_path, option):
    """On the CPU the bytes are the same with and without --deterministic."""
    stage = STAGES["classification"]
    runs = [tmp_path / "one", tmp_path / "two"]
    for run in runs:
        stage.run(inputs, run, "--epochs", 1, *option)
    assert not differing(*(contents(run, stage) for run in runs))
    row(f"two runs, {option[0] if option else 'default'}", "the same command", 2, "same bytes")
