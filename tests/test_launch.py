"""Several processes as one job: how it ends, whoever fails, and how its machines find together."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from core.errors import InputError
from core.run import launch

import pytest
from conftest import REPO, SMALL, fake_python
from faults.stages import row, said, stamp, wait_for_start, wait_gone

AGAIN = "the same command goes on from here"
SCRIPT = """
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, {repo!r})
from core.errors import InputError
from core.run.main import run_main
rank, folder = int(os.environ["RANK"]), Path(__file__).parent

def main():
    {body}

run_main(main)
"""


def script(folder: Path, body: str) -> Path:
    """A stage that a test needs; in `body` there are `rank` and `folder`."""
    path = folder / "stage.py"
    path.write_text(SCRIPT.format(repo=str(REPO), body=body.replace("\n", "\n    ")))
    return path


def run(path: Path, *options: object) -> tuple[int, str]:
    """Exit status and reason of a job of two processes."""
    words = ["--processes", 2, *options, path]
    return launch.launch(launch.get_args_parser().parse_args([str(word) for word in words]))


BAD = "raise InputError('x.jpg: damaged; replace it')"
LOST = "raise RuntimeError('[gloo/pair.cc:1] Connection closed by peer [::1]:7. GLHF')"
ENDS = {
    "well": ("pass", 0, ""),
    "bad input": (f"time.sleep(60 * (1 - rank)); {BAD}", 1, "rank 1: x.jpg: damaged; replace it"),
    "all": (BAD, 1, "rank [01]: x.jpg: damaged; replace it"),
    "killed": (
        "time.sleep(60 * (1 - rank)); os.kill(os.getpid(), signal.SIGKILL)",
        137,
        rf"rank 1 was killed by SIGKILL \(out of memory\?\); {AGAIN}",
    ),
    "crashed": (
        f"rank or os.kill(os.getpid(), signal.SIGSEGV); {LOST}",
        139,
        f"rank 0 was killed by SIGSEGV; {AGAIN}",
    ),
    "status": (
        "time.sleep(60 * (1 - rank)); sys.exit(3)",
        3,
        "rank 1 ended with status 3; what it said stands above",
    ),
    "bug": (
        "time.sleep(60 * (1 - rank)); {}['a']",
        1,
        "rank 1: KeyError: 'a'; its traceback stands above",
    ),
    "others first": (  # the others' connection breaks before the cause has said its words
        f"if rank == 0: {LOST}\ntime.sleep(1); {BAD}",
        1,
        "rank 1: x.jpg: damaged; replace it",
    ),
    "abort": (  # as NCCL's watchdog does
        f"""others = Path(os.environ["LAST_WORDS"]).with_name("1")
while rank == 0:
    others.exists() and os.abort()
{BAD}""",
        1,
        "rank 1: x.jpg: damaged; replace it",
    ),
}


@pytest.mark.parametrize("how", ENDS)
def test_one_reason(how, tmp_path, capfd):
    """The job ends within seconds, and what fails because another has failed says nothing."""
    body, status, reason = ENDS[how]
    began = time.monotonic()
    found = run(script(tmp_path, body))
    assert time.monotonic() - began < 50  # before anybody has slept long enough
    assert found[0] == status and re.fullmatch(reason, found[1]), found
    lines = said(capfd.readouterr().err)
    assert ("KeyError: 'a'" in lines) if how == "bug" else lines == []


def test_a_process_that_does_not_end(tmp_path, monkeypatch):
    """As in a collective of NCCL: SIGKILL after a while."""
    monkeypatch.setattr(launch, "GRACE", 1.0)
    body = f"signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(60 * (1 - rank)); {BAD}"
    assert run(script(tmp_path, body)) == (1, "rank 1: x.jpg: damaged; replace it")


def start(*words: object, **more: object) -> subprocess.Popen:
    """The launcher as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "core.run.launch", *map(str, words)], cwd=REPO, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, **more,
    )  # fmt: skip


def wait(paths: list[Path], limit: float = 60) -> None:
    until = time.monotonic() + limit
    while not all(path.exists() for path in paths):
        assert time.monotonic() < until, paths
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("name", "status", "words"),
    [
        ("SIGINT", 130, [f"interrupted; {AGAIN}"]),
        ("SIGTERM", 143, [f"stopped by SIGTERM; {AGAIN}"]),
        ("SIGKILL", -9, []),
    ],
)
def test_signals(name, status, words, tmp_path):
    """The launcher's end is that of all: they unwind, and say nothing themselves."""
    body = """try:
    (folder / f"ready{rank}").touch()
    time.sleep(60)
finally:
    (folder / f"unwound{rank}").touch()"""
    process = start("--processes", 2, script(tmp_path, body))
    wait([tmp_path / "ready0", tmp_path / "ready1"])
    process.send_signal(getattr(signal, name))
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, said(stderr)) == (status, words)
    wait([tmp_path / "unwound0", tmp_path / "unwound1"])


def test_two_nodes(tmp_path):
    """Each ends with the other's reason; node 0 may come later."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        master = f"localhost:{free.getsockname()[1]}"
    body = "assert os.environ['WORLD_SIZE'] == '4'\ntime.sleep(60 * (rank != 3)); " + BAD
    options = ["--nodes", 2, "--master", master, "--node-rank"]
    stage = script(tmp_path, body)
    other = start("--processes", 2, *options, 1, stage)
    status, reason = run(stage, *options, 0)
    _, stderr = other.communicate(timeout=60)
    assert (other.returncode, said(stderr)[-1]) == (1, "error: rank 3: x.jpg: damaged; replace it")
    assert (status, reason) == (1, f"{socket.gethostname()}: rank 3: x.jpg: damaged; replace it")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "no script: give a stage's script"),
        (["nothing.py"], "nothing.py: give a stage's script"),
        (["--nodes", "2", "--node-rank", "2", "evaluate.py"], "less than --nodes 2 is needed"),
        (["--nodes", "2", "evaluate.py"], "--master None: give HOST:PORT"),
        (["--nodes", "2", "--master", "host", "evaluate.py"], "--master host: give HOST:PORT"),
    ],
)
def test_bad_options(options, message, monkeypatch):
    monkeypatch.chdir(REPO)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(InputError, match=message):
        launch.main(options)


TOGETHER = """from core.run import distributed, precision
import torch
distributed.start("cpu")
assert distributed.total(torch.ones(1)).item() == 2
distributed.check_same(7, "the step")
precision.fastest = lambda _: ("bf16", "fp16")[rank]
assert precision.amp_type("auto", torch.device("cpu")) == "fp16"
distributed.check_shared(folder)
(folder / f"out{rank}").mkdir()
try:
    distributed.check_same(rank, "the step to go on from")
except InputError as error:
    (folder / f"said{rank}").write_text(str(error))
if folder.name == "two":
    distributed.check_shared(folder / f"out{rank}", seconds=1)"""


def test_two_jobs_side_by_side(tmp_path):
    """By settings.sh, on one machine: neither is in the other's way. One has no shared --out."""
    stages = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        stages.append(script(tmp_path / name, TOGETHER))
    command = """source scripts/settings.sh
    pids=()
    for s in "$@"; do stage "$s" 2>"${s%/*}/err" & pids+=($!); done
    for pid in "${pids[@]}"; do wait "$pid"; echo $?; done"""
    python = fake_python(tmp_path / "bin", f'exec "{sys.executable}" "$@"')
    result = subprocess.run(
        ["bash", "-c", command, "bash", *map(str, stages)], cwd=REPO, text=True,
        env=os.environ | python | {"GPUS": "2"}, stdout=subprocess.PIPE,
    )  # fmt: skip
    one, two = (said((tmp_path / name / "err").read_text()) for name in ("one", "two"))
    assert result.stdout.split() == ["0", "1"], (one, two)
    host = socket.gethostname()
    remedy = "--out must be one folder that all machines share"
    assert one == []
    assert len(two) == 1
    assert re.search(rf"out[01]: another folder on {host} than on rank 0; {remedy}$", two[0]), two
    for rank in (0, 1):
        words = (tmp_path / "one" / f"said{rank}").read_text()
        assert (
            words == f"the step to go on from: 0 on rank 0 ({host}), 1 on rank 1 ({host}); {remedy}"
        )
    assert not list(tmp_path.rglob(".*.tmp"))


def rank_of(launcher: int, rank: int) -> int:
    """The process of a rank."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
            ours = parent == launcher and f"RANK={rank}".encode() in (
                folder / "environ"
            ).read_bytes().split(b"\0")
        except OSError:
            continue
        if ours:
            return int(folder.name)
    raise AssertionError(f"no rank {rank}")


def train(data_root: Path, out: Path, epochs: int) -> subprocess.Popen:
    """A training of two processes that saves at every step."""
    options = ["--data", data_root, "--split", "train", "--out", out, *SMALL,
               "--epochs", epochs, "--save-every", 1]  # fmt: skip
    return start("--processes", 2, "train_classification.py", *options)


def killed(rank: int, data_root: Path, out: Path, epochs: int) -> None:
    """SIGKILL a rank after its next checkpoint: the job ends, with the reason as all it says."""
    before = stamp(out / "last.pt")
    process = train(data_root, out, epochs)
    assert wait_for_start(process, out / "last.pt", before)
    os.kill(rank_of(process.pid, rank), signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 137
    assert said(stderr) == [f"error: rank {rank} was killed by SIGKILL (out of memory?); {AGAIN}"]
    assert stderr.splitlines()[-1] == said(stderr)[0]
    assert not wait_gone(process.pid)


def test_a_killed_rank_of_a_training(data_root, tmp_path):
    """The other waits for it in a collective."""
    killed(1, data_root, tmp_path / "net", 500)


@pytest.mark.faults
def test_killed_ranks_and_then_the_same_bytes(data_root, tmp_path):
    """Either rank is killed once; what the third start leaves is what an undisturbed run leaves."""
    found = []
    for name, ranks in (("undisturbed", ()), ("killed", (1, 0))):
        out = tmp_path / name
        for rank in ranks:
            killed(rank, data_root, out, 8)
        process = train(data_root, out, 8)
        assert said(process.communicate(timeout=120)[1]) == []
        assert process.returncode == 0
        found.append(
            {p.name: p.read_bytes() for p in out.glob("*") if p.suffix in (".pt", ".jsonl")}
        )
    assert found[0].keys() == {"last.pt", "model.pt", "log.jsonl"}
    assert found[0] == found[1]
    row("SIGKILL to one of two ranks", "after a checkpoint", 2, "one line, then same bytes")
