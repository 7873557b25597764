"""Progress in a file: whole lines, few of them, without carriage returns; on a terminal a bar."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

from core import progress

import pytest
from conftest import REPO

SCRIPT = """
import sys, time
from core import progress
progress.SECONDS = {seconds}
with progress.Bar(total=40, desc="work", unit="image") as bar:
    for i in range(40):
        time.sleep(0.01)
        bar.update()
        if i == 20:
            bar.write("warning: something", file=sys.stderr)
if {fails}:
    with progress.Bar(total=3, desc="more", unit="image") as bar:
        bar.update()
        print("note: of others", file=sys.stdout)
        sys.exit("error: it ends")
"""


def stderr_of(seconds: float, fails: bool = False) -> str:
    command = [sys.executable, "-c", SCRIPT.format(seconds=seconds, fails=fails)]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=60)
    return done.stderr


def test_few_lines_in_a_file() -> None:
    text = stderr_of(seconds=30)
    assert "\r" not in text and text.endswith("\n") and "\n\n" not in text
    lines = text.splitlines()
    assert len(lines) <= 5 and "warning: something" in lines
    assert re.fullmatch(r"work: 100%\| 40/40 \[\d\d:\d\d<\d\d:\d\d, .*image/s\]", lines[-1])


def test_a_line_every_so_often() -> None:
    lines = stderr_of(seconds=0.05).splitlines()
    assert 5 <= len(lines) <= 20
    assert len(set(lines)) >= len(lines) - 1


def test_what_follows_has_a_line_of_its_own() -> None:
    assert stderr_of(seconds=30, fails=True).splitlines()[-1] == "error: it ends"


def test_a_bar_on_a_terminal() -> None:
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    command = [sys.executable, "-c", SCRIPT.format(seconds=30, fails=False)]
    process = subprocess.Popen(command, cwd=REPO, stderr=follower, stdout=subprocess.DEVNULL)
    os.close(follower)
    text = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        text += part
    assert process.wait(timeout=60) == 0
    os.close(leader)
    assert text.count(b"\r") > 3 and "█".encode() in text


def test_disabled(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.Bar(total=2, disable=True) as bar:
        bar.update()
    assert capsys.readouterr().err == ""
