"""Work beside this process: reading ahead, and the dense CRF of one image after another."""

import contextlib
import functools
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import forkserver, resource_tracker
from typing import Any, TypeVar

from core.run import distributed
from core.run.main import STOPS, signals_held

import torch
from torch.utils.data import DataLoader

R = TypeVar("R")
T = TypeVar("T")
CHUNK = 16  # images a task holds: enough to hide the cost of starting one
CPU = torch.device("cpu")


def cpu_count() -> int:
    """This process's share of the cores that the processes of this machine may use."""
    cores = len(os.sched_getaffinity(0))
    of_task = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if distributed.world_size() > 1 and "LOCAL_WORLD_SIZE" not in os.environ and of_task.isdigit():
        return max(1, min(cores, int(of_task)))  # srun's tasks, each usually bound to its own
    return max(1, cores // distributed.local_world_size())


def ignore_interrupts(_: int = 0) -> None:
    """Start of a worker process: Ctrl-C is the parent's to handle; one thread is its share."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for signum in STOPS:
        if signal.getsignal(signum) != signal.SIG_IGN:  # as nohup has it
            signal.signal(signum, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    sys.excepthook = lambda *_: None  # of a thread whose parent has left; errors go another way
    torch.set_num_threads(1)


def read_ahead(dataset: Any, workers: int, **how: Any) -> Iterator[Any]:
    """Yield what a DataLoader with these options does, computed ahead by `workers` processes.

    With `batch_size=None, collate_fn=f` that is f(item) in order. A RuntimeError where such a
    process was killed; `run_main` says what may help.
    """
    how |= {"num_workers": workers, "worker_init_fn": ignore_interrupts}
    if workers:  # from Python 3.14 on another start is the default, for which f must be picklable
        how["multiprocessing_context"] = "fork"
    loader = DataLoader(dataset, prefetch_factor=4 if workers else None, **how)
    with signals_held():
        items = iter(loader)
    try:
        yield from items
    except (ConnectionError, EOFError, RuntimeError) as error:
        # Killed while it handed a tensor over; what a data set raises names its process.
        text = str(error)
        cut = "ancdata" in text if isinstance(error, RuntimeError) else "worker process" not in text
        if not workers or not cut:
            raise
        raise RuntimeError("DataLoader worker (pid unknown) is gone") from error


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let processes that start here compute on one core, whatever library they load."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before


def _start_process() -> None:
    ignore_interrupts()

    def end_with_parent() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
        os._exit(1)

    # A killed parent takes its workers along. PR_SET_PDEATHSIG would not do: the parent in the
    # kernel's sense is the fork server, which lives as long as its children do.
    threading.Thread(target=end_with_parent, daemon=True).start()


def _start_stream(device: torch.device) -> None:
    torch.cuda.set_device(device)  # a thread starts on GPU 0, whatever the rank
    torch.cuda.set_stream(torch.cuda.Stream())


def _after(stream: torch.cuda.Stream, function: Callable[..., R], *task: Any) -> R:
    """function(*task) on this thread's stream, once the other has done what it was given so far."""
    torch.cuda.current_stream().wait_stream(stream)
    return function(*task)


def _drain(pipe: int) -> None:
    """Read what nobody wants any more."""
    with contextlib.suppress(OSError):
        while os.read(pipe, 1 << 16):
            pass


class Pool(contextlib.AbstractContextManager["Pool"]):
    """Workers that keep a bounded number of images in flight.

    Where the work runs on a CPU these are processes, by default one for each core of this process's
    share. Where it runs on a GPU they are threads, each with its own CUDA stream. One job, a GPU's
    default, works in the calling thread: on an H100 four threads got 0.75 of its rate, because what
    takes the time is to launch the kernels, and of that Python does one at a time.

    `jobs`: number of workers; 0: the default. `device`: where the tasks compute, which need not be
    the stage's device: pydensecrf computes on the CPU on a machine with GPUs too, and in threads
    would wait for one core.
    """

    def __init__(self, jobs: int, device: torch.device = CPU):
        self.executor: Executor | None = None
        self._stream: torch.cuda.Stream | None = None  # on which a GPU's tasks are made
        self._tasks: int | None = None  # the end of the tasks' pipe that the processes read
        on_gpu = device.type == "cuda"
        self.jobs = jobs or (1 if on_gpu else cpu_count())
        if self.jobs > 1 and on_gpu:
            self._stream = torch.cuda.current_stream(device)
            self.executor = ThreadPoolExecutor(self.jobs, "", _start_stream, (device,))
        elif self.jobs > 1:
            # Not fork: the parent may hold CUDA and OpenMP threads.
            context = multiprocessing.get_context("forkserver")
            preload = ["core.method.crf", "core.method.cam", "core.data.metrics"]
            context.set_forkserver_preload(preload)
            resource_tracker.ensure_running()
            with signals_held(), one_thread():
                forkserver.ensure_running()
            self.executor = ProcessPoolExecutor(self.jobs, context, _start_process)
            queue = getattr(self.executor, "_call_queue", None)
            self._tasks = os.dup(queue._reader.fileno()) if queue is not None else None

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and issubclass(kind, BrokenProcessPool):
            # Two things would keep the executor waiting. A process that had just started waits for
            # a lock that the killed one held; and the thread that feeds tasks writes to a pipe that
            # nobody reads. That the executor closes its end is not enough: loader processes, forked
            # since, have it open too.
            for process in list((getattr(self.executor, "_processes", None) or {}).values()):
                process.kill()
            if self._tasks is not None:
                threading.Thread(target=_drain, args=(self._tasks,), daemon=True).start()
                self._tasks = None
        if self.executor is not None:
            self.executor.shutdown(cancel_futures=True)
        if self._tasks is not None:
            os.close(self._tasks)

    def map(self, function: Callable[..., R], tasks: Iterable[tuple[Any, ...]]) -> Iterator[R]:
        """Yield function(*task) in order; tasks are drawn as places get free.

        A BrokenProcessPool where a worker process was killed; `run_main` says what may help.
        """
        if self.executor is None:
            yield from (function(*task) for task in tasks)
            return
        if self._stream is not None:
            function = functools.partial(_after, self._stream, function)
        waiting: deque[Future[R]] = deque()
        for task in tasks:
            with signals_held():  # a process may start
                waiting.append(self.executor.submit(function, *task))
            if len(waiting) > 4 * self.jobs:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def over_chunks(
    function: Callable[[list[T]], R], items: Sequence[T], jobs: int, what: str
) -> Iterator[R]:
    """function(chunk) of this process's share of the items, `CHUNK` at a time, in order.

    In processes where there are many, behind a progress bar named `what`.
    """
    chunks = [list(items[i : i + CHUNK]) for i in range(0, len(items), CHUNK)]
    chunks = distributed.share(chunks)
    bar = distributed.progress(sum(map(len, chunks)), what)
    with bar, Pool(jobs if len(chunks) > 8 else 1) as pool:
        parts = pool.map(function, ((chunk,) for chunk in chunks))
        for chunk, part in zip(chunks, parts, strict=True):
            yield part
            bar.update(len(chunk))
