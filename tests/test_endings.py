"""How scripts end on streams that take nothing, on signals, and on machines that forbid much."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from core.data.datasets import DataRoot
from core.run.main import AGAIN

import pytest
from conftest import REPO
from faults.stages import STAGES, can_mount, contents, differing, row, said
from test_edges import scoring


def start(script: str, *arguments: object, **popen: object) -> subprocess.Popen:
    environment = os.environ | popen.pop("env", {})
    defaults = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "start_new_session": True}
    command = [sys.executable, str(REPO / script), *map(str, arguments)]
    return subprocess.Popen(command, text=True, env=environment, **defaults | popen)


def test_streams_that_take_nothing(inputs, tmp_path):
    """`| head`, a full disk, a closed or dead stream: the figures are in the file all the same."""
    data = DataRoot(inputs / "data")
    ends = {}
    with open("/dev/full", "w") as full:
        dead = start("evaluate.py", *scoring(inputs, "--json", tmp_path / "dead.json"))
        dead.stdout.close()
        dead.stderr.close()
        ends["dead"] = dead.wait(timeout=60)
        gone = start("evaluate.py", *scoring(inputs, "--json", tmp_path / "full.json"), stdout=full)
        ends["full"], stderr = gone.wait(timeout=60), gone.stderr.read()
        closed = start(
            "evaluate.py", *scoring(inputs, "--json", tmp_path / "closed.json"),
            stdout=None, stderr=None, preexec_fn=lambda: os.closerange(0, 3),
        )  # fmt: skip
        ends["closed"] = closed.wait(timeout=60)
    assert ends == {"dead": 0, "full": 1, "closed": 0}
    assert said(stderr)[-1] == "error: standard output: No space left on device"
    figures = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ends]
    assert all(list(each["iou"]) == ["background", *data.classes] for each in figures)


def test_a_class_that_the_terminal_cannot_write(tmp_path, data_root):
    classes = DataRoot(data_root).classes
    for file in ("classes.txt", "labels.txt"):
        text = (data_root / file).read_text().replace(classes[0], "größe")
        (data_root / file).write_text(text, encoding="utf-8")
    command = ["--data", data_root, "--split", "val", "--labels", data_root / "SegmentationClass"]
    more = ["--json", tmp_path / "a.json", "--device", "cpu"]
    ascii_only = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    process = start("evaluate.py", *command, *more, env=ascii_only)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert "gr\\xf6\\xdfe" in stdout
    assert "größe" in json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["iou"]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR1"])
def test_a_signal_to_the_whole_job(inputs, tmp_path, name):
    """Also where the loaders die first: the status and the words are of the signal."""
    stage = STAGES["cam"]
    arguments = stage.arguments(inputs, tmp_path, "--workers", 2, "--scales", *[4] * 30)
    process = start("make_cam.py", *arguments)
    until = time.monotonic() + 60
    while not (tmp_path / "cam/run.json").exists() and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.5)
    os.killpg(process.pid, getattr(signal, name))
    stderr = process.communicate(timeout=60)[1]
    assert said(stderr) == [f"stopped by {name}; {AGAIN}"]
    assert process.returncode == 128 + getattr(signal, name)


LOST = """
import os, signal
from core.run.main import run_main
class Held:
    def __del__(self):
        os.kill(os.getpid(), signal.{})
def main():
    Held()
    raise RuntimeError("DataLoader worker (pid 1) is killed by signal")
run_main(main)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_inside_a_destructor(name):
    """Python drops what a handler raises there; the end is the signal's all the same."""
    command = [sys.executable, "-c", LOST.format(name)]
    end = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=60)
    assert end.returncode == 128 + getattr(signal, name)
    words = "interrupted" if name == "SIGINT" else f"stopped by {name}"
    assert end.stderr.splitlines()[-1] == f"{words}; start it again"


SAVING = """
import os, signal, sys
import torch
from core.run import checkpoint, main

def save():
    left = at
    def trace(frame, event, _):
        nonlocal left
        code = frame.f_code
        if code.co_name != "__exit__" or code.co_filename != torch.serialization.__file__:
            return None
        left -= event == "line"
        if left == 0 and event == "line":
            os.kill(os.getpid(), signal.SIGTERM)
        return trace
    sys.settrace(trace)
    checkpoint.save(main.Path("model.pt"), {"a": torch.zeros(100_000), "b": torch.ones(7)})
    sys.settrace(None)

at = 0
while True:
    at += 1
    child = os.fork()
    if child == 0:
        main.run_main(save)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(status)
    if status == 0:
        break
"""


def test_a_signal_inside_a_checkpoint_s_end(tmp_path):
    """At every line of the end of torch's zip writer, which aborted when its file was closed."""
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    command = [sys.executable, "-c", SAVING]
    process = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120
    )
    *stopped, last = process.stdout.split()
    assert len(stopped) > 1 and set(stopped) == {"143"} and last == "0", process.stderr
    assert set(said(process.stderr)) == {"stopped by SIGTERM; start it again"}
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]


@pytest.mark.parametrize("seconds", [0.3, 1.0, 2.0])
def test_ctrl_c_at_any_moment(inputs, tmp_path, seconds):
    """During the imports too, and three in a row; of a stage that takes many seconds."""
    long = STAGES["cam"].arguments(inputs, tmp_path, "--scales", *[4] * 40)
    process = start("make_cam.py", *long)
    time.sleep(seconds)
    for _ in range(3):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.02)
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode in (130, -2)  # -2: before Python is there
    lines = said(stderr)
    assert len(lines) <= 1 and "".join(lines).startswith("interrupted"), lines


def test_a_path_that_is_not_utf_8(tmp_path, data_root):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/gr\xf6\xdfe"))
    data_root.rename(folder)
    labels, out = folder / "SegmentationClass", tmp_path / "a.json"
    process = start("evaluate.py", "--data", folder, "--labels", labels, "--json", out, "--split",
                    "val", "--device", "cpu")  # fmt: skip
    assert process.communicate(timeout=60)[1].count("error") == 0
    assert process.returncode == 0
    assert str(folder) in json.loads(out.read_text())["run"]["argv"]


def test_a_temporary_folder_with_a_long_name(inputs, tmp_path):
    long = tmp_path / ("x" * 120)
    long.mkdir()
    arguments = STAGES["pseudo"].arguments(inputs, tmp_path, "--jobs", 2)
    process = start("make_pseudo_labels.py", *arguments, env={"TMPDIR": str(long)})
    stderr = process.communicate(timeout=60)[1]
    if process.returncode:  # newer Pythons choose another folder by themselves
        assert said(stderr)[-1].startswith("error: TMPDIR is too long")


def run_cam(inputs: Path, out: Path, *more: object, prefix: tuple = (), **popen: object):
    command = [*prefix, sys.executable, REPO / "make_cam.py"]
    command += STAGES["cam"].arguments(inputs, out, *more)
    end = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=120, **popen)
    return end.returncode, said(end.stderr)


def test_a_directory_of_another_user(inputs, tmp_path):
    """A second start by someone else: one line, nothing changed."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root, to give files away and to lose its rights")
    stage, out = STAGES["cam"], tmp_path / "cam"
    stage.run(inputs, tmp_path)
    before = contents(tmp_path, stage)
    for path in (out, *out.iterdir()):
        os.chown(path, 65534, 65534)
    ordinary = ("setpriv", "--bounding-set", "-dac_override", "--inh-caps", "-all")
    for more in ([], ["--overwrite"]):
        status, lines = run_cam(inputs, tmp_path, *more, prefix=ordinary)
        assert status == 1 and len(lines) == 1, lines
        assert lines[0] == f"error: {out}: cannot be written (Permission denied)"
    assert not differing(before, contents(tmp_path, stage))
    row("second start by another user", "files owned by one", 2, "one line, nothing changed")


NO_FORK = """
import errno, os
def fork():
    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
os.fork = fork
"""


def test_no_more_processes(inputs, tmp_path):
    """As under `ulimit -u`: one line that says so; without more processes the run goes on."""
    (tmp_path / "sitecustomize.py").write_text(NO_FORK)
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    status, lines = run_cam(inputs, tmp_path, env=environment)
    assert status == 1 and len(lines) == 1 and "ulimit -u" in lines[0], lines
    assert run_cam(inputs, tmp_path, "--workers", 0, env=environment) == (0, [])
    assert not differing(contents(inputs, STAGES["cam"]), contents(tmp_path, STAGES["cam"]))
    row("no process may be started", "as under ulimit -u", 1, "one line, then same bytes")


READ_ONLY = "mount --bind {0} {0} && mount -o remount,ro,bind {0} && exec {1}"
NO_SHM = "mount -t tmpfs -o ro none /dev/shm && exec {1}"


@pytest.mark.parametrize(
    ("what", "mounts", "status"), [("code", READ_ONLY, 0), ("/dev/shm", NO_SHM, 1)]
)
def test_what_is_read_only(inputs, tmp_path, what, mounts, status):
    """The code may be; without shared memory the loaders cannot work, and one line says so."""
    if not can_mount(tmp_path / "trial"):
        pytest.skip("needs root, to mount")
    arguments = STAGES["cam"].arguments(inputs, tmp_path)
    stage = subprocess.list2cmdline([sys.executable, str(REPO / "make_cam.py"), *arguments])
    command = ["unshare", "-m", "sh", "-c", mounts.format(REPO, stage)]
    end = subprocess.run(command, capture_output=True, text=True, timeout=120)
    lines = said(end.stderr)
    assert end.returncode == status, lines
    if status:
        assert len(lines) == 1 and "/dev/shm cannot be written" in lines[0], lines
        STAGES["cam"].run(inputs, tmp_path, "--workers", 0)
    assert not differing(contents(inputs, STAGES["cam"]), contents(tmp_path, STAGES["cam"]))
    outcome = "one line, status 1, then same bytes" if status else "same bytes"
    row(f"{what} read-only", "mounted so in a namespace of its own", 1, outcome)
