"""The end of a script in one line where memory or a helping process is lost; the lock."""

from __future__ import annotations

import argparse
import errno
import fcntl
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures.process import BrokenProcessPool

import make_cam
import make_pseudo_labels
import train_classification
from core.errors import InputError
from core.run import lock
from core.run.main import STOPS, run_main, signals_held
from core.run.parallel import Pool, read_ahead

import numpy as np
import pytest
import torch
from conftest import REPO, SMALL
from faults.stages import said

CPU_TEXT = (
    "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you "
    "tried to allocate 3145728000 bytes. Error code 12 (Cannot allocate memory)"
)
GPU_TEXT = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 10.00 GiB"
WRAPPED = (
    "Caught {0} in DataLoader worker process 0.\nOriginal Traceback (most recent call):\n{0}: "
)
LOST = {
    "CUDA": (torch.OutOfMemoryError(GPU_TEXT), r"out of GPU memory \(2.00 GiB more wanted\); give"),
    "cuBLAS": (
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
        "out of GPU memory; give",
    ),
    "cuDNN": (
        RuntimeError("FIND was unable to find an engine to execute this computation"),
        "out of GPU memory; give",
    ),
    "cuDNN's handle": (
        RuntimeError("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"),
        "out of GPU memory; give",
    ),
    "another GPU": (
        RuntimeError("CUDA error: no kernel image is available for execution on the device"),
        "this GPU is not one that the installed torch was built for; install .* --device cpu",
    ),
    "compiler": (
        type("E", (RuntimeError,), {"__module__": "torch._inductor.exc"})(
            "backend='inductor' raised:\nno working C++ compiler"
        ),
        "--compile: backend=.inductor. raised: no working C.. compiler; fix that, or leave",
    ),
    "CPU": (RuntimeError(CPU_TEXT), r"out of memory \(3000 MiB more wanted\); give"),
    "Windows": (RuntimeError("DefaultCPUAllocator: not enough memory"), "out of memory; give"),
    "Python": (MemoryError(), "out of memory; give"),
    "NumPy": (
        np._core._exceptions._ArrayMemoryError((1 << 40,), np.dtype(np.uint8)),
        r"out of memory \(1.00 TiB more wanted\); give",
    ),
    "C++": (RuntimeError("std::bad_alloc"), "out of memory; give"),
    "fork": (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "out of memory; give"),
    "loader": (RuntimeError(WRAPPED.format("RuntimeError") + CPU_TEXT), "out of memory .3000 MiB"),
    "NumPy in a loader": (
        RuntimeError(WRAPPED.format("_ArrayMemoryError") + "Unable to allocate 8 GiB for an array"),
        r"out of memory \(8 GiB more wanted\); give",
    ),
    "shared memory": (
        RuntimeError("unable to write to file </torch_7_1>: No space left on device (28)"),
        "a loader process was killed .*/dev/shm.*; give",
    ),
    "killed loader": (
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
        "a loader process was killed .out of memory or /dev/shm.*; give",
    ),
    "killed worker": (BrokenProcessPool("abruptly"), "a worker process was killed .*; give"),
}


def parser_of(*options: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    for option in options:
        parser.add_argument(option)
    return parser


def end_of(main, capsys, parser=None) -> tuple[int, list[str]]:
    """Exit status and what is said on stderr."""
    with pytest.raises(SystemExit) as end:
        run_main(main, parser)
    return end.value.code, said(capsys.readouterr().err)


def raising(error: BaseException):
    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize("what", LOST)
def test_lost_memory_is_one_line(what, capsys):
    error, message = LOST[what]
    options = ("--jobs", "--workers", "--device")
    status, (line,) = end_of(raising(error), capsys, lambda: parser_of(*options))
    assert status == 1
    assert line.startswith("error: ") and line.endswith(" and start again")

    assert re.search(message, line), line


def test_advice_is_of_this_script(capsys, monkeypatch):
    """Its own options in the order to try them; of a GPU those that can take less of it."""

    def line_of(error: BaseException, parser) -> str:
        return end_of(raising(error), capsys, parser)[1][0]

    gpu, cpu = LOST["CUDA"][0], LOST["CPU"][0]
    assert line_of(gpu, train_classification.get_args_parser).endswith(
        "; give a larger --accumulate or a smaller --crop and start again"
    )
    assert line_of(gpu, make_pseudo_labels.get_args_parser).endswith(
        "; give --device cpu and start again"
    )
    monkeypatch.setattr(sys, "argv", ["make_cam.py", "--amp=off", "--jobs", "4"])
    assert line_of(gpu, make_pseudo_labels.get_args_parser).endswith(
        "; give fewer --jobs and start again"
    )
    assert line_of(gpu, make_cam.get_args_parser).endswith(
        "--max-side or --amp bf16 and start again"
    )
    monkeypatch.setattr(sys, "argv", ["make_cam.py", "--amp", "bf16", "--jobs=1"])
    assert "--amp" not in line_of(gpu, make_cam.get_args_parser)
    assert "--device cpu" in line_of(gpu, make_pseudo_labels.get_args_parser)
    assert line_of(cpu, make_cam.get_args_parser).endswith(
        "; give fewer --batch-images, smaller --scales, a smaller --max-side, fewer --workers or "
        "--amp bf16 and start again"
    )
    assert line_of(cpu, lambda: parser_of("--crops")).endswith("; start it again")
    assert line_of(cpu, None).endswith("; start it again")


NCCLS = """NCCL error in: /pytorch/torch/csrc/distributed/NCCLUtils.cpp:94, {}, NCCL version 2.27.5
{}
Last error:
{}"""


@pytest.mark.parametrize(
    ("kind", "reason", "message"),
    [
        (
            "invalid usage",
            "Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 50000",
            "error: NCCL: Duplicate GPU .* device 50000; start as many processes as there are GPUs",
        ),
        (
            "unhandled system error",
            "Error while creating shared memory segment /dev/shm/nccl-x (size 33030528)",
            r"error: NCCL: Error while .* 33030528\); give /dev/shm more room",
        ),
        (
            "remote process exited or there was a network error",
            "socketProgress: Connection closed by remote peer node1<42>",
            "error: lost the connection to the other processes .socketProgress: .*; start it again",
        ),
    ],
)
def test_what_nccl_says_last(kind, reason, message, capsys, monkeypatch):
    """Its first line names a source file; the cause stands at the end."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(time, "sleep", lambda _: None)
    error = torch.distributed.DistBackendError(NCCLS.format(kind, "ncclSystemError: ...", reason))
    status, (line,) = end_of(raising(error), capsys)
    assert status == 1 and re.match(message, line), line


def test_what_no_user_can_help_stays_a_traceback():
    """A fault in a loader process is none of its memory."""
    for error in (KeyError("a"), RuntimeError(WRAPPED.format("RuntimeError") + "shapes differ")):
        with pytest.raises(type(error)):
            run_main(raising(error))


def allocate(kind: str) -> None:
    """What an image that is too large for the memory does, in a worker process."""
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "input":
        raise InputError("x.jpg: damaged")
    if kind == "python":
        raise MemoryError
    torch.empty(1 << 60) if kind == "torch" else np.empty(1 << 50)


@pytest.mark.parametrize(
    ("kind", "message"),
    [("torch", "out of memory"), ("numpy", "out of memory"), ("python", "out of memory"),
     ("kill", "process was killed"), ("input", "error: x.jpg: damaged")],
)  # fmt: skip
@pytest.mark.parametrize("where", ["loader", "pool"])
def test_in_worker_processes(where, kind, message, capsys):
    def main() -> None:
        if where == "loader":
            list(read_ahead([kind], workers=1, batch_size=None, collate_fn=allocate))
            return
        with Pool(2) as pool:
            list(pool.map(allocate, [(kind,)]))

    status, (line,) = end_of(main, capsys)
    assert status == 1 and message in line


LIMITED = """
import resource, sys
from core.run.main import STOPS, run_main
import train_classification as stage
if __name__ == "__main__":
    pages = int(open("/proc/self/statm").read().split()[0])
    limit = pages * resource.getpagesize() + (200 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    run_main(stage.main, stage.get_args_parser)
"""


def test_a_stage_without_memory(data_root, tmp_path):
    """200 MB more than it has after its imports: too little for one step at 512 pixels."""
    options = ["--data", data_root, "--split", "train", "--out", tmp_path / "net", *SMALL,
               "--crop", 512, "--batch-size", 8]  # fmt: skip
    result = subprocess.run(
        [sys.executable, "-c", LIMITED, *map(str, options)],
        cwd=REPO, capture_output=True, text=True,
    )  # fmt: skip
    *_, line = said(result.stderr)
    assert result.returncode == 1 and len(said(result.stderr)) == 1
    assert "out of memory (" in line and "give a larger --accumulate, a smaller --crop" in line


def refuse(monkeypatch, number: int) -> None:
    def lockf(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", lockf)


@pytest.mark.parametrize("name", ["ENOLCK", "ENOSYS", "EOPNOTSUPP"])
def test_a_file_system_without_locks(name, tmp_path, monkeypatch, capsys):
    refuse(monkeypatch, getattr(errno, name))
    with lock.take(tmp_path / "run"):
        pass
    (line,) = said(capsys.readouterr().err)
    assert line.startswith(f"warning: {tmp_path / 'run'}: its file system has no locks")
    assert not lock.works(tmp_path)


@pytest.mark.parametrize("name", ["EACCES", "EAGAIN"])
def test_a_lock_that_is_held(name, tmp_path, monkeypatch):
    refuse(monkeypatch, getattr(errno, name))
    with pytest.raises(InputError, match="another process is writing there; wait for it"):
        lock.take(tmp_path / "run")


def test_a_lock_that_fails_otherwise_names_its_file(tmp_path, monkeypatch, capsys):
    refuse(monkeypatch, errno.EIO)
    status, (line,) = end_of(lambda: lock.take(tmp_path), capsys)
    assert status == 1 and f"{tmp_path / '.lock'}: Input/output error" in line


def test_locks_here(tmp_path):
    assert lock.works(tmp_path)
    assert list(tmp_path.iterdir()) == []


BROKEN = """
import os
from core.run.parallel import Pool
kill = "__import__('os').kill(__import__('os').getpid(), 9)" + " " * 1_000_000
end, _parent = os.pipe()
def tasks():
    if os.fork() == 0:  # as a loader's process, which has the pool's pipes open too
        os.close(1), os.close(2), os.close(_parent)
        os._exit(len(os.read(end, 1)))  # when its parent has left
    for _ in range(20):
        yield (kill,)
try:
    with Pool(2) as pool:
        list(pool.map(eval, tasks()))
except Exception as error:
    print(type(error).__name__)
"""


def test_a_killed_worker_does_not_leave_the_pool_waiting():
    """Though large tasks are on their way to it and others have the pipe open."""
    result = subprocess.run(
        [sys.executable, "-c", BROKEN], cwd=REPO, capture_output=True, text=True, timeout=120
    )
    assert result.stdout == "BrokenProcessPool\n", result.stderr


@pytest.mark.parametrize("signum", [signal.SIGINT, *STOPS])
def test_a_signal_waits_for_processes_to_start(signum):
    """It is noted while they do, and raised afterwards by the handler of before."""
    came: list[int] = []
    before = signal.signal(signum, lambda number, _: came.append(number))
    try:
        with signals_held():
            os.kill(os.getpid(), signum)
            assert came == []
        assert came == [signum]
    finally:
        signal.signal(signum, before)


class HandsOver:
    """An item whose coming out of the loader's process fails, as a killed one's does."""

    def __init__(self, error: Exception):
        self.error = error

    def __reduce__(self):
        return fail, (self.error,)


def test_loaders_fork_whatever_the_default_is():
    """Python 3.14's default on Linux is a fork server, to which a local function cannot go."""
    multiprocessing.set_start_method("forkserver", force=True)
    try:
        read = read_ahead([1, 2, 3], 1, batch_size=None, collate_fn=lambda item: 2 * item)
        assert list(read) == [2, 4, 6]
    finally:
        multiprocessing.set_start_method(None, force=True)


def fail(error: Exception) -> None:
    raise error


CUT_OFF = [
    ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
    ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"),
    EOFError(),
    RuntimeError("received 0 items of ancdata"),
]


@pytest.mark.parametrize("error", CUT_OFF, ids=lambda error: type(error).__name__)
def test_a_loader_killed_while_it_hands_over(error, capsys):
    """Whatever the socket says then, the line is the same as for one killed while it computes."""

    def stage():
        list(read_ahead([HandsOver(error)], 1, batch_size=None, collate_fn=lambda item: item))

    with pytest.raises(SystemExit):
        run_main(stage)
    assert "a loader process was killed" in capsys.readouterr().err


@pytest.mark.parametrize("error", [*CUT_OFF[:3], OSError("Too many open files")], ids=str)
def test_the_thread_that_pins_memory_leaves_the_word_to_the_line(error, capsys):
    """It reads from a killed loader too; what else ends it is said."""

    def _pin_memory_loop() -> None:  # as torch's is called
        fail(error)

    def stage():
        thread = threading.Thread(target=_pin_memory_loop)
        thread.start()
        thread.join()

    run_main(stage)
    assert (capsys.readouterr().err == "") == (error in CUT_OFF)
