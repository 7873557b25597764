"""Stages as processes that are forked from a helper which has imported torch; see power_cut.py."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from faults.stages import Stage, said, wait_gone

import pytest

POWER_CUT = Path(__file__).with_name("power_cut.py")
LIMIT = 120.0  # seconds for one start


@dataclass
class Ended:
    """How a start of a stage ended: exit status, lines on stderr, the writes it made."""

    status: int
    lines: list[str]
    writes: list[str]


class Helper:
    """A process that forks stages (power_cut.py)."""

    def __init__(self, folder: Path):
        self.folder = folder
        # Unbuffered: `select` below must see a line that came together with the one before.
        self.process = subprocess.Popen(
            [sys.executable, str(POWER_CUT)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
        )  # fmt: skip

    def start(
        self, stage: Stage, inputs: Path, out: Path, more: list[str], at: int = 0, ranks: int = 1,
        pool: str = "fork",
    ) -> Ended:  # fmt: skip
        """Run a stage below `out`, killed at its write number `at`; 0: let it to its end."""
        log, stderr = self.folder / "writes", self.folder / "stderr"
        for path in (log, stderr, self.folder / "writes.groups"):
            path.unlink(missing_ok=True)
        arguments = stage.arguments(inputs, out, *more)
        cut = {"at": at, "below": str(out / stage.folders[0]), "log": str(log)}
        request = {"script": stage.script, "arguments": arguments, "stderr": str(stderr)}
        request |= {"cut": cut, "ranks": ranks, "pool": pool}
        self.process.stdin.write(json.dumps(request).encode() + b"\n")
        child = int(self.process.stdout.readline())
        if not select.select([self.process.stdout], [], [], LIMIT)[0]:
            os.killpg(child, signal.SIGKILL)
            pytest.fail(f"{stage.script}: hangs; {said(stderr.read_text())}")
        status = int(self.process.stdout.readline())
        assert not wait_gone(child), f"{stage.script}: processes left"
        return Ended(status, said(stderr.read_text()), log.read_text().splitlines())

    def close(self) -> None:
        self.process.communicate()


def well(ended: Ended) -> None:
    """It ended well, in silence."""
    assert (ended.status, ended.lines) == (0, []), ended
