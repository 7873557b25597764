"""What the fault tests share: the stages, small, as processes; their processes; small disks."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from conftest import REPO, SMALL, run_stage

ROWS: list[tuple[str, str, int, str]] = []  # fault, how, times, outcome: the summary's table


def row(fault: str, how: str, times: int, outcome: str) -> None:
    """Record what a test injected and saw, for the table at the end of `pytest -m faults`."""
    ROWS.append((fault, how, times, outcome))


@dataclass
class Stage:
    """A stage's script and options; `{out}` in them stands for the directory it writes.

    Attributes:
        folders: its output directories below `{out}`'s parent; the first holds the run.json.
    """

    script: str
    options: str
    folders: tuple[str, ...]

    def arguments(self, inputs: Path, out: Path, *more: object) -> list[str]:
        """The options as a list: inputs are read in `inputs`, results go below `out`."""
        filled = self.options.format(i=inputs, o=out, small=" ".join(SMALL))
        return [*filled.split(), *map(str, more)]

    def run(self, inputs: Path, out: Path, *more: object) -> None:
        """Run it in this process."""
        run_stage(import_module(self.script).main, *self.arguments(inputs, out, *more))

    def start(self, inputs: Path, out: Path, *more: object, **popen: object) -> subprocess.Popen:
        """Start it as a process, the leader of a session of its own; stderr goes to a pipe."""
        command = [sys.executable, str(REPO / f"{self.script}.py")]
        environment = os.environ | popen.pop("env", {})
        return subprocess.Popen(
            command + self.arguments(inputs, out, *more), env=environment, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **popen,
        )  # fmt: skip


CPU = "--device cpu --amp off"
STAGES = {
    "classification": Stage(
        "train_classification",
        "--data {i}/data --split train --out {o}/classification {small} --save-every 1 --epochs 4",
        ("classification",),
    ),
    "cam": Stage(
        "make_cam",
        f"--data {{i}}/data --split train --out {{o}}/cam {CPU} --workers 1 "
        "--checkpoint {i}/classification/model.pt",
        ("cam",),
    ),
    "affinity_labels": Stage(
        "make_affinity_labels",
        "--data {i}/data --split train --scores {i}/cam --out {o}/affinity_labels --device cpu "
        "--jobs 2",
        ("affinity_labels",),
    ),
    "affinity": Stage(
        "train_affinity",
        "--data {i}/data --split train --labels {i}/affinity_labels --out {o}/affinity --radius 5 "
        "{small} --save-every 1 --epochs 3",
        ("affinity",),
    ),
    "rw": Stage(
        "make_random_walk",
        f"--data {{i}}/data --split train --scores {{i}}/cam --out {{o}}/rw {CPU} "
        "--checkpoint {i}/affinity/model.pt --log2-steps 4 --pad-to 64 --workers 1",
        ("rw",),
    ),
    "pseudo": Stage(
        "make_pseudo_labels",
        "--data {i}/data --split train --scores {i}/rw --out {o}/pseudo --device cpu --jobs 2",
        ("pseudo",),
    ),
    "segmentation": Stage(
        "train_segmentation",
        "--data {i}/data --split train --labels {i}/pseudo --out {o}/segmentation {small} "
        "--workers 1 --save-every 1 --epochs 3",
        ("segmentation",),
    ),
    "predictions": Stage(
        "predict",
        f"--data {{i}}/data --split val --checkpoint {{i}}/segmentation/model.pt {CPU} "
        "--out {o}/predictions --scales 0.5 1 --workers 1 --jobs 2",
        ("predictions",),
    ),
}


def contents(out: Path, stage: Stage) -> dict[str, bytes]:
    """Every file the stage left, hidden ones too, apart from run.json and the lock."""
    return {
        f"{folder}/{path.name}": path.read_bytes()
        for folder in stage.folders
        for path in (out / folder).iterdir()
        if path.is_file() and path.name not in ("run.json", ".lock")
    }


def differing(one: dict[str, bytes], two: dict[str, bytes]) -> list[str]:
    """Names of files that are not in both or not the same bytes."""
    return sorted(name for name in {**one, **two} if one.get(name) != two.get(name))


def said(stderr: str) -> list[str]:
    """Lines of stderr without progress bars, which end in a bracket, and the note on no weights."""
    bar = r"[^\r\n]*(?:%\||\d(?:image|step) \[)[^\]\r\n]*\]"
    lines = re.sub(bar, "", stderr).replace("\r", "\n").splitlines()
    lines = [line.strip() for line in lines if line.strip()]
    return [line for line in lines if not line.startswith("note: the backbone stays")]


def wait_for_start(
    process: subprocess.Popen, record: Path, before: int, limit: float = 120
) -> bool:
    """Wait until the run.json is newer than `before`; False if the process ends without."""
    until = time.monotonic() + limit
    while stamp(record) == before:
        assert time.monotonic() < until, f"{record}: nothing after {limit} s"
        if process.poll() is not None:
            return False
        time.sleep(0.005)
    return True


def wait_for(path: Path, process: subprocess.Popen, limit: float = 120) -> None:
    """Wait until a file is there."""
    assert wait_for_start(process, path, 0, limit), said(process.communicate()[1])


def stamp(path: Path) -> int:
    """A number that changes when the file is written again; 0 where there is none."""
    try:
        return path.stat().st_ino ^ path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


@dataclass
class Process:
    pid: int
    parent: int
    command: str


def session(leader: int) -> list[Process]:
    """The living processes of a session, its leader included."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent, _, sid = (folder / "stat").read_text().rsplit(")", 1)[1].split()[:4]
            command = (folder / "cmdline").read_text(errors="replace").replace("\0", " ")
        except OSError:
            continue
        if int(sid) == leader and state != "Z":
            found.append(Process(int(folder.name), int(parent), command))
    return found


def loaders(leader: int) -> list[int]:
    """The loader processes of a stage: forked, so their command line is its own."""
    processes = session(leader)
    own = next(p.command for p in processes if p.pid == leader)
    return [p.pid for p in processes if p.parent == leader and p.command == own]


def pool_workers(leader: int) -> list[int]:
    """The CRF processes of a stage: children of its fork server, which is its child."""
    processes = session(leader)
    servers = {p.pid: p.command for p in processes if p.parent == leader}
    # Its imports start processes too (ldconfig, uname), of other commands.
    return [p.pid for p in processes if servers.get(p.parent) == p.command]


def wait_gone(leader: int, limit: float = 20) -> list[str]:
    """Command lines of what is left of a session after at most `limit` seconds."""
    until = time.monotonic() + limit
    while (left := session(leader)) and time.monotonic() < until:
        time.sleep(0.05)
    return [p.command for p in left]


def end(process: subprocess.Popen, signum: int, group: bool = False) -> tuple[int, list[str]]:
    """Send a signal; return the exit status and what was said on stderr."""
    if process.poll() is None:
        (os.killpg if group else os.kill)(process.pid, signum)
    _, stderr = process.communicate(timeout=120)
    return process.returncode, said(stderr)


def finish(process: subprocess.Popen) -> tuple[int, list[str]]:
    """Let a process end by itself; return the exit status and what was said on stderr."""
    _, stderr = process.communicate(timeout=300)
    return process.returncode, said(stderr)


def can_mount(folder: Path) -> bool:
    """Whether this user may mount a tmpfs."""
    try:
        with small_disk(folder, 64):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[Path]:
    """A tmpfs of `kib` KiB mounted on `folder`."""
    folder.mkdir(exist_ok=True)
    _mount("-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", folder)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=False)


def remount(folder: Path, option: str) -> None:
    """Give the disk another size (`size=400m`) or make it read-only (`ro`)."""
    _mount("-o", f"remount,{option}", folder)


def _mount(*arguments: object) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True, capture_output=True)


SIGNAL_STATUS = {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}
