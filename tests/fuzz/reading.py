"""The readers of every kind of file, and a time and a memory limit around them."""

from __future__ import annotations

import argparse
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from core.data.datasets import DataRoot
from core.data.scores import Scores
from core.errors import InputError
from core.method.networks import Classifier
from core.run import artefacts, checkpoint, record, weights

import torch
from torch import nn

LIMIT_SECONDS = 10  # for one input, on a busy machine
LIMIT_BYTES = 1 << 30  # by which the peak memory of this process may grow
RECORD = {
    "stage": "make_cam",
    "holds": "scores",
    "classes": ["disc", "square", "bar"],
    "settings": {"split": "train", "scales": [0.5, 1.0]},
    "inputs": {"data": "0123456789abcdef", "checkpoint": "fedcba9876543210"},
    "seconds": 12.5,
    "finished": True,
    "results": {"images": 8},
}


class Hang(BaseException):
    """Not an Exception: no reader may swallow it."""


@contextmanager
def bounded() -> Iterator[None]:
    """A time limit and a memory limit around reading one input."""

    def ring(*_: object) -> None:
        raise Hang(f"over {LIMIT_SECONDS} s")

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024
    assert grown < LIMIT_BYTES, f"memory grew by {grown >> 20} MiB"


def refusal(read: Callable[[Path], object], path: Path) -> str | None:
    """The message with which `read` refuses the file; None where it takes it."""
    try:
        with bounded():
            read(path)
    except InputError as error:
        message = str(error)
        assert len(message.splitlines()) == 1 and len(message) < 3000, message[:300]
        assert path.name in message or str(path.parent) in message, message[:300]
        return message
    return None


class Tiny(nn.Module):
    """A network small enough to be saved a thousand times."""

    def __init__(self, width: int):
        super().__init__()
        self.arguments = {"width": width}
        self.layer = nn.Linear(width, 2)


def read_list(path: Path) -> None:
    DataRoot(path.parents[2]).ids(path.stem)


def read_labels(path: Path) -> None:
    DataRoot(path.parent).image_labels(["train0", "train1"])


def read_cam(path: Path) -> None:
    Scores.load(path, 3, (48, 64))


def read_model(path: Path) -> None:
    checkpoint.load_model(path, (Tiny,), ["a", "b"])


def read_record(path: Path) -> None:
    artefacts.read(path.parent, "scores", RECORD["classes"])


def read_own_record(path: Path) -> None:
    """The record of an earlier run in the same directory, as a stage's start reads it."""
    args = argparse.Namespace(
        out=path.parent, overwrite=False, stale="refuse", settings=RECORD["settings"], defaults={}
    )
    device = torch.device("cpu")
    with record.Run("make_cam", args, device, "scores", RECORD["classes"], RECORD["inputs"]):
        pass


def classifier(path: Path) -> None:
    checkpoint.load_model(path, (Classifier,), ["a"])


def backbone(path: Path) -> None:
    weights.load(path, "resnet18")
