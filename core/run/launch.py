"""Start a stage in several processes, on one machine or on many, and end them together.

    python -m core.run.launch --processes 4 train_classification.py --data ... --out ...

It sets the environment that torchrun sets, which the stages run under as well. What it adds is the
end: when one process fails, is killed or cannot go on, the others, on all machines, are ended
within seconds and the last line says which and why. On one machine it takes a free port, so several
jobs run side by side. Exit status: that of the process that failed, 128 + N for one that signal N
killed; 130 for Ctrl-C, 143 for SIGTERM.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType

from torch.distributed import PrefixStore, Store, TCPStore

from core.errors import InputError
from core.run.main import AGAIN, LAST_WORDS, run_main

GRACE = 15.0  # seconds from SIGTERM to SIGKILL
REASON, DONE = "reason", "done"  # in the store: why a machine failed; how many have ended


@dataclass
class Worker:
    """One process of the job.

    Attributes:
        words: where `run_main` writes why it ended.
    """

    rank: int
    process: subprocess.Popen
    words: Path

    def failed(self) -> bool:
        """Whether it has ended badly or said that it will."""
        return bool(self.process.poll()) or self.words.exists()

    def reason(self) -> tuple[int, str]:
        """Exit status and one line on a worker that failed."""
        status = self.process.returncode
        if self.words.exists():
            words = self.words.read_text(encoding="utf-8").removeprefix("error: ")
            return max(status, 1), f"rank {self.rank}: {words}"
        if status < 0:
            name = signal.Signals(-status).name
            hint = " (out of memory?)" if -status == signal.SIGKILL else ""
            return 128 - status, f"rank {self.rank} was killed by {name}{hint}; {AGAIN}"
        return status, f"rank {self.rank} ended with status {status}; what it said stands above"


def get_args_parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--processes", type=int, default=1, help="on each machine, one per GPU (1)")
    p.add_argument("--machines", type=int, default=1, help="1")
    p.add_argument("--machine", type=int, default=0, help="number of this machine, from 0 (0)")
    p.add_argument("--master", metavar="HOST:PORT", help="of machine 0, where there are several")
    p.add_argument("command", nargs=argparse.REMAINDER, help="script and its options")
    return p


def meet(args: argparse.Namespace) -> tuple[Store, str, int]:
    """The store through which processes and machines find each other, its host and port."""
    wait = timedelta(minutes=15)
    if args.machines == 1:
        store = TCPStore("localhost", 0, is_master=True, timeout=wait, wait_for_workers=False)
        return store, "localhost", store.port
    host, _, port = (args.master or "").rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise InputError(f"--master {args.master}: give HOST:PORT of machine 0")
    until = time.monotonic() + wait.total_seconds()
    while args.machine > 0:  # TCPStore would wait too, but deaf to Ctrl-C
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 5):
            break
        if time.monotonic() > until:
            raise InputError(f"--master {args.master}: machine 0 does not answer; is it started?")
        time.sleep(1)
    try:
        first = args.machine == 0
        store = TCPStore(host, int(port), None, first, wait, wait_for_workers=False)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--master {args.master}: {reason}; choose another port") from None
    return store, host, int(port)


def start(args: argparse.Namespace, host: str, port: int, folder: Path) -> Iterator[Worker]:
    """Start this machine's processes one after the other."""
    cores = len(os.sched_getaffinity(0))
    defaults = {
        "OMP_NUM_THREADS": str(max(1, cores // args.processes)),
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # what a lost process group warns of at exit
        "PYTHONWARNINGS": "ignore:resource_tracker:UserWarning",  # of one that was killed
    }
    if args.machines == 1:
        defaults["GLOO_SOCKET_IFNAME"] = "lo"  # whatever the host's name stands for
    shared = {
        "MASTER_ADDR": host,
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(args.machines * args.processes),
        "LOCAL_WORLD_SIZE": str(args.processes),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is here: rank 0 opens none
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    for number in range(args.processes):
        rank = args.machine * args.processes + number
        words = folder / str(rank)
        own = {"RANK": str(rank), "LOCAL_RANK": str(number), LAST_WORDS: str(words)}
        # A session of its own: Ctrl-C reaches the launcher alone, which ends all of them once.
        process = subprocess.Popen(
            [sys.executable, *args.command],
            env=defaults | os.environ | shared | own,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        yield Worker(rank, process, words)


def watch(workers: list[Worker], store: Store | None) -> tuple[int, str]:
    """Wait until all have ended well, (0, ""), or the first has not: exit status and reason.

    Args:
        store: of a job on several machines.
    """
    while True:
        failed = [worker for worker in workers if worker.failed()]
        if failed:  # one that was killed comes first: what others say follows from it
            spoke = [worker for worker in failed if worker.words.exists()]
            silent = [worker for worker in failed if worker not in spoke]
            first = silent or [min(spoke, key=lambda worker: worker.words.stat().st_mtime_ns)]
            with contextlib.suppress(subprocess.TimeoutExpired):
                first[0].process.wait(GRACE)
            end(workers)
            return first[0].reason()
        if all(worker.process.poll() == 0 for worker in workers):
            return 0, ""
        if store is not None and store.check([REASON]):
            return 1, store.get(REASON).decode()
        time.sleep(0.1)


def end(workers: list[Worker]) -> None:
    """End what still runs: SIGTERM, and after a while SIGKILL to it and to its own processes."""
    for worker in workers:
        if worker.process.poll() is None:
            worker.process.terminate()
    until = time.monotonic() + GRACE
    for worker in workers:
        try:
            worker.process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(worker.process.pid, signal.SIGKILL)
            worker.process.wait()


def part(store: Store, args: argparse.Namespace, reason: str) -> None:
    """Tell the other machines why this one failed; the first, which has the store, leaves last."""
    if reason and not store.check([REASON]):
        store.set(REASON, reason)
    store.add(DONE, 1)
    until = time.monotonic() + 60
    while args.machine == 0 and store.add(DONE, 0) < args.machines and time.monotonic() < until:
        time.sleep(0.1)


def _stop(signum: int, _: FrameType | None) -> None:
    raise SystemExit(128 + signum)


def launch(args: argparse.Namespace) -> tuple[int, str]:
    """Run the job: exit status and, unless that is 0, the reason."""
    store, host, port = meet(args)
    own, several = PrefixStore("launch", store), args.machines > 1
    workers: list[Worker] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for worker in start(args, host, port, Path(folder)):
                workers.append(worker)
            status, reason = watch(workers, own if several else None)
        except SystemExit as stop:
            status = int(stop.code)
            reason = f"machine {args.machine} was stopped; {AGAIN}"
        except RuntimeError:  # the store's connection
            status, reason = 1, f"lost machine 0 ({args.master}); {AGAIN}"
        finally:
            for signum in (signal.SIGINT, signal.SIGTERM):
                signal.signal(signum, signal.SIG_IGN)
            end(workers)
        if several:
            with contextlib.suppress(RuntimeError):
                part(own, args, reason)
    return status, reason


def main(argv: list[str] | None = None) -> None:
    args = get_args_parser().parse_args(argv)
    if not args.command or not Path(args.command[0]).is_file():
        raise InputError(f"{' '.join(args.command[:1]) or 'no script'}: give a stage's script")
    if args.processes < 1 or not 0 <= args.machine < args.machines:
        raise InputError("--processes and --machines are at least 1, --machine counts from 0")
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _stop)
    status, reason = launch(args)
    if status == 128 + signal.SIGINT:
        print(f"interrupted; {AGAIN}", file=sys.stderr)
    elif status not in (0, 128 + signal.SIGTERM):
        print(f"error: {reason}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    run_main(main)
