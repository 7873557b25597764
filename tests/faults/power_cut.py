"""Run a stage whose processes are all killed at its Nth write, as a power cut would.

    POWER_CUT='{"at": 7, "below": "OUT", "log": "FILE"}' python power_cut.py make_cam --data ...
    python power_cut.py    # a helper that forks a stage for each line on its stdin

A write is what changes a directory, OUT: making a folder, opening a file for writing, fsync,
rename, removal, truncation. FILE gets a line for each, from whichever process it comes; `at` 0
kills nothing.

Importing torch takes longer than a small stage runs, so the helper imports it once.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import multiprocessing
import os
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import NoReturn

REPO = Path(__file__).resolve().parents[2]
# Python's audit events that are writes, and which of their arguments is the path.
WRITES = {"open": 0, "os.mkdir": 0, "os.remove": 0, "os.rename": 1, "os.truncate": 0}
FOR_WRITING = os.O_WRONLY | os.O_RDWR


def install() -> None:
    """Watch the writes of this process and of those that it forks; the Nth is never done."""
    cut = json.loads(os.environ["POWER_CUT"])
    folder, at = cut["below"], cut["at"]
    log = os.open(cut["log"], os.O_RDWR | os.O_CREAT | os.O_APPEND)
    groups = os.open(f"{cut['log']}.groups", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    os.write(groups, f"{os.getpgid(0)}\n".encode())
    if "LAST_WORDS" in os.environ:  # of several processes, each in a group, and so the launcher
        os.write(groups, f"{os.getpgid(os.getppid())}\n".encode())

    def note(what: str, path: object) -> None:
        if not isinstance(path, str | os.PathLike):
            return
        path = os.path.abspath(path)
        if path != folder and not path.startswith(f"{folder}/"):
            return
        os.write(log, f"{what} {path}\n".encode())
        # Where two processes write at once both may count one more: the first to see N kills.
        if at and os.pread(log, 1 << 20, 0).count(b"\n") >= at:
            for group in sorted(set(os.pread(groups, 1 << 20, 0).split()), reverse=True):
                if int(group) != os.getpgid(0):
                    kill_group(int(group))
            kill_group(os.getpgid(0))

    def audit(event: str, arguments: tuple) -> None:
        if event in WRITES and (event != "open" or arguments[2] & FOR_WRITING):
            note(event, arguments[WRITES[event]])

    def fsync(file: int) -> None:  # which has no audit event; what is written outlives processes
        note("os.fsync", os.readlink(f"/proc/self/fd/{file}"))

    sys.addaudithook(audit)
    os.fsync = fsync


def kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def run(script: str, *arguments: str) -> None:
    """What starting the script does."""
    from core.run.main import run_main

    stage = importlib.import_module(script)
    sys.argv = [f"{script}.py", *arguments]
    run_main(stage.main, stage.get_args_parser)


def run_and_leave(script: str, *arguments: str) -> NoReturn:
    """`run`, and the end of the process; nothing imported is torn down, which takes a second."""
    status = 1
    try:
        run(script, *arguments)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def become(request: dict) -> None:
    """Make a forked process look like one that was started."""
    os.setsid()
    for number, path in enumerate((os.devnull, os.devnull, request["stderr"])):
        file = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    os.environ["POWER_CUT"] = json.dumps(request["cut"])
    install()
    if request["pool"] == "fork":
        fork_pools()
    if request["ranks"] > 1:
        become_ranks(request["ranks"])


def fork_pools() -> None:
    """Fork the CRF processes from the stage: a fork server would have to import torch."""
    from core.run import parallel

    forks = multiprocessing.get_context("fork")
    parallel.multiprocessing.get_context = lambda _: forks
    parallel.forkserver.ensure_running = lambda: None


def become_ranks(count: int) -> None:
    """Go on as `count` processes of a job, all in this process's group."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    rank = next((rank for rank in range(1, count) if os.fork() == 0), 0)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
    }


def serve() -> None:
    """Fork a process for each request; say its number and, when it has ended, its status.

    A request is a JSON object on a line: `script`, `arguments`, `stderr` (a file), `cut` (what
    POWER_CUT holds), `ranks`, and `pool`, "fork" or "forkserver".
    """
    for path in REPO.glob("*.py"):
        importlib.import_module(path.stem)
    environment = importlib.import_module("core.run.environment")
    environment.versions(), environment.git_commit()  # they are kept
    gc.freeze()  # or each forked process would go through all that is imported, and copy it
    for line in sys.stdin:
        request = json.loads(line)
        if (child := os.fork()) == 0:
            become(request)
            run_and_leave(request["script"], *request["arguments"])
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ != "__main__":  # imported by a CRF process of a fork server
    if "POWER_CUT" in os.environ:
        install()
else:
    sys.path.insert(0, str(REPO))
    if sys.argv[1:]:
        install()
        run(*sys.argv[1:])
    else:
        serve()
