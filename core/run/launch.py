"""Start a stage in several processes, on one machine or on many, and end them together.

    python -m core.run.launch --processes 4 train_classification.py --data ... --out ...

It sets the environment that torchrun sets, which the stages run under as well. What it adds is the
end: when one process fails, is killed or cannot go on, the others, on all machines, are ended
within seconds and the last line says which and why. On one machine it takes a free port, so several
jobs run side by side; on several, start it on each with its own --node-rank and the same --master.

Exit status: that of the process that failed, 128 + N for one that signal N killed; 130 for Ctrl-C,
143 for SIGTERM, 129 for SIGHUP, 138 for SIGUSR1.
"""

import argparse
import contextlib
import ctypes
import functools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import InputError, first_line
from core.run.main import AGAIN, LAST_WORDS, STOPS, going_on, run_main, stopped_by
from core.run.options import OneLineParser, integer

if TYPE_CHECKING:
    from torch.distributed import TCPStore

GRACE = 15.0  # seconds from SIGTERM to SIGKILL
MEETING = 900.0  # seconds for the nodes to be started one after the other
LIBC, PR_SET_PDEATHSIG = ctypes.CDLL(None), 1  # a killed launcher takes its processes along
REASON, DONE = "launch/reason", "launch/done/{}"  # in the store: why a node failed; which ended
again = AGAIN  # what the command that is started does the next time
stopped: list[int] = []  # the signals so far: noted only, for torch's import swallows exceptions


@dataclass
class Worker:
    """One process of the job."""

    rank: int
    process: subprocess.Popen
    words: Path  # where `run_main` writes why it ended

    def failed(self) -> bool:
        """Whether it has ended badly or said that it will."""
        return bool(self.process.poll()) or self.words.exists()

    def precedence(self) -> tuple[int, int]:
        """The worker that failed with the least of these is why the job ends.

        One that was killed; then the first that spoke; then one that ended without a word or, as
        others break off, aborted.
        """
        if self.words.exists():
            return 1, self.words.stat().st_mtime_ns
        status = self.process.returncode
        return (0 if status < 0 and status != -signal.SIGABRT else 2), 0

    def reason(self) -> tuple[int, str]:
        """Exit status and one line on a worker that failed."""
        status = self.process.returncode
        if self.words.exists():
            words = self.words.read_text(encoding="utf-8").removeprefix("error: ")
            return max(status, 1), f"rank {self.rank}: {words}"
        if status < 0:
            name = signal.Signals(-status).name
            hint = " (out of memory?)" if -status == signal.SIGKILL else ""
            return 128 - status, f"rank {self.rank} was killed by {name}{hint}; {again}"
        return status, f"rank {self.rank} ended with status {status}; what it said stands above"


def get_args_parser() -> argparse.ArgumentParser:
    p = OneLineParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    some, rank = integer(1, 1024), integer(0, 1023)
    p.add_argument("--processes", type=some, default=1, help="on each machine, one per GPU (1)")
    p.add_argument("--nodes", type=some, default=1, help="machines (1)")
    p.add_argument("--node-rank", type=rank, default=0, help="number of this machine, from 0 (0)")
    p.add_argument("--master", metavar="HOST:PORT", help="of node 0, where there are several")
    p.add_argument("command", nargs=argparse.REMAINDER, help="script and its options")
    return p


def meet(args: argparse.Namespace) -> "TCPStore | None":
    """The store through which processes and machines find each other; None after a signal."""
    from torch.distributed import TCPStore

    host, _, port = ("localhost:0" if args.nodes == 1 else str(args.master)).rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise InputError(f"--master {args.master}: give HOST:PORT of node 0")
    first, until = args.node_rank == 0, time.monotonic() + MEETING
    if not first:
        print(f"waiting for node 0 at {args.master}", file=sys.stderr)
    while not first and not stopped:  # TCPStore would wait too, but deaf to Ctrl-C
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 5):
            break
        if time.monotonic() > until:
            raise InputError(f"--master {args.master}: node 0 does not answer; is it started?")
        time.sleep(1)
    if stopped:
        return None
    try:
        return TCPStore(host, int(port), None, first, timedelta(minutes=1), wait_for_workers=False)
    except RuntimeError as error:
        reason = first_line(error)
        raise InputError(f"--master {args.master}: {reason}; try another port") from None


def start(args: argparse.Namespace, store: "TCPStore", folder: str, workers: list[Worker]) -> None:
    """Start this machine's processes one after the other, and note each in `workers`."""
    shared = {
        "MASTER_ADDR": store.host,
        "MASTER_PORT": str(store.port),
        "WORLD_SIZE": str(args.nodes * args.processes),
        "LOCAL_WORLD_SIZE": str(args.processes),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is here: rank 0 opens none
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    for number in range(args.processes):
        rank = args.node_rank * args.processes + number
        words = Path(folder, str(rank))
        own = {"RANK": str(rank), "LOCAL_RANK": str(number), LAST_WORDS: str(words)}
        command, env = [sys.executable, *args.command], os.environ | shared | own
        along = functools.partial(LIBC.prctl, PR_SET_PDEATHSIG, signal.SIGTERM)
        # A session of its own: Ctrl-C reaches the launcher alone, which ends all of them once.
        process = subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=along
        )
        workers.append(Worker(rank, process, words))


def all_ended(args: argparse.Namespace, store: "TCPStore") -> bool:
    """Say that this node has ended; whether all have."""
    store.set(DONE.format(args.node_rank), "")
    return store.check([DONE.format(node) for node in range(args.nodes)])


def watch(workers: list[Worker], store: "TCPStore", args: argparse.Namespace) -> tuple[int, str]:
    """Wait until all have ended well, (0, ""), or the first has not: exit status and reason.

    The nodes leave together, for the next job has the same port.
    """
    while True:
        failed = [worker for worker in workers if worker.failed()]
        if failed:
            first = min(failed, key=Worker.precedence)
            end(workers, first)
            return first.reason()
        if stopped:
            return stop()
        if store.check([REASON]):
            return 1, store.get(REASON).decode()
        if all(worker.process.poll() == 0 for worker in workers) and all_ended(args, store):
            return 0, ""
        time.sleep(0.1)


def stop() -> tuple[int, str]:
    """Exit status and reason after a signal."""
    return 128 + stopped[0], f"{stopped_by(stopped[0])}; {again}"


def end(workers: list[Worker], first: Worker | None = None) -> None:
    """End what still runs: SIGTERM, and after a while SIGKILL to it and to its own processes.

    No SIGTERM to `first`, which ends by itself, still speaking perhaps.
    """
    for worker in workers:
        if worker is not first and worker.process.poll() is None:
            worker.process.terminate()
    until = time.monotonic() + GRACE
    for worker in workers:
        try:
            worker.process.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(worker.process.pid, signal.SIGKILL)
            worker.process.wait()


def launch(args: argparse.Namespace) -> tuple[int, str]:
    """Run the job: exit status and, unless that is 0, the reason."""
    store = meet(args)
    if store is None:
        return stop()
    workers: list[Worker] = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            start(args, store, folder, workers)
            status, reason = watch(workers, store, args)
        except RuntimeError:  # the store's connection: node 0 has left, perhaps as all is done
            well = all(worker.process.poll() == 0 for worker in workers)
            status, reason = int(not well), f"lost node 0 ({args.master}); {again}"
        finally:
            end(workers)
    if status:
        with contextlib.suppress(RuntimeError):  # tell the other nodes why
            if not store.check([REASON]):
                store.set(REASON, f"{socket.gethostname()}: {reason}")
            # Node 0, which has the store, leaves last.
            until = time.monotonic() + (GRACE if args.node_rank == 0 else 0)
            while not all_ended(args, store) and time.monotonic() < until:
                time.sleep(0.1)
    return status, reason


def main(argv: list[str] | None = None) -> None:
    global again
    args = get_args_parser().parse_args(argv)
    again = going_on("--overwrite" in args.command)
    if not args.command or not Path(args.command[0]).is_file():
        raise InputError(f"{' '.join(args.command[:1]) or 'no script'}: give a stage's script")
    if args.node_rank >= args.nodes:
        raise InputError(f"--node-rank {args.node_rank}: less than --nodes {args.nodes} is needed")
    for signum in (signal.SIGINT, *STOPS):
        signal.signal(signum, lambda number, _: stopped.append(number))
    default = os.environ.setdefault  # of launcher and processes, if the user has said nothing
    default("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // args.processes)))
    # No stack traces from the C++ below torch when the other end of a connection is gone, nor words
    # about what a killed process left: the reason is to be the last line.
    default("TORCH_CPP_LOG_LEVEL", "ERROR")
    default("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")
    if args.nodes == 1:
        default("GLOO_SOCKET_IFNAME", "lo")  # whatever address the host's name stands for
    status, reason = launch(args)
    if status:  # after whatever a progress bar left unfinished
        print(f"\n{'' if stopped else 'error: '}{reason}", file=sys.stderr)
    sys.exit(status)


if __name__ == "__main__":
    run_main(main)
