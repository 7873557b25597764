"""How every script ends: in one line where a user can help it, and with an exit status.

No torch in here: tools/doctor.py runs where torch is broken.
"""

import argparse
import atexit
import contextlib
import errno
import itertools
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, NoReturn

from core.errors import InputError, first_line, out_of_memory

LAST_WORDS = "LAST_WORDS"  # the file in which core/run/launch.py looks for a rank's reason to end
AGAIN = "the same command goes on from here"
WITHOUT_OVERWRITE = "the same command without --overwrite goes on from here"
STOPS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)  # schedulers, and a closed terminal
PATIENCE = 5  # so many Ctrl-C end a script that does not end

# What lessens the memory a stage takes, in the order to try it.
SAVERS = {
    "--accumulate": "a larger --accumulate",
    "--crop": "a smaller --crop",
    "--batch-images": "fewer --batch-images",
    "--scales": "smaller --scales",
    "--max-side": "a smaller --max-side",
    "--jobs": "fewer --jobs",
    "--workers": "fewer --workers",
    "--amp": "--amp bf16",
}
# What helps on a GPU only where the command line asks for more than there is by default.
ON_A_GPU = {"--jobs": r"--jobs[ =](?![01]\b)", "--amp": r"--amp[ =]off\b", "--workers": "(?!)"}
ON_GPU = re.compile(r"\b(?:CUDA|HIP|NCCL|CUBLAS|CUDNN|CUSPARSE|CUSOLVER)|find an engine")
WANTED = re.compile(r"(?:tried|unable) to allocate ([\d.]+) ([KMGT]?i?B\w*)", re.IGNORECASE)
LOST = re.compile("gloo|NCCL|connection (?:closed|reset|refused)|broken pipe", re.IGNORECASE)
NCCLS_REASON = re.compile(r"Last error:\s*(\S.*)")
NCCLS_REMEDIES = {  # where no process is lost
    "Duplicate GPU": "start as many processes as there are GPUs",
    "shared memory": "give /dev/shm more room (docker run --shm-size=8g)",
}
LOST_LOADER = re.compile(r"DataLoader worker \(pid|</torch_")
REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "make room; "),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "make it readable and writable; "),
    errno.EROFS: "make it writable; ",
    errno.EAGAIN: "no more processes may be started here (ulimit -u); lower --workers and --jobs; ",
}

ParserMaker = Callable[[], argparse.ArgumentParser] | None  # a script's `get_args_parser`
resumes = ""  # how the script goes on where it was, if it does; the run that it opens says so
signalled = 0  # the signal that is to end this process, if one came


def again() -> str:
    """What starting the same command again does."""
    return resumes or "start it again"


def going_on(overwrite: bool) -> str:
    """How a stage goes on that has --overwrite or not, which would delete what is there."""
    return WITHOUT_OVERWRITE if overwrite else AGAIN


def stopped_by(signum: int) -> str:
    """What a signal was, in words."""
    return "interrupted" if signum == signal.SIGINT else f"stopped by {signal.Signals(signum).name}"


def run_main(main: Callable[[], None], parser: ParserMaker = None) -> None:
    """Run a script's `main()`; bad input, too little memory, a full disk or Ctrl-C is one line.

    Exit status: 1 for bad input, memory or a failing file system, 130 for Ctrl-C, 128 + N for the
    signals `STOPS`. A process group is left on the way out, also where a stage returned early. Of
    the options of `parser` those that save memory are advised.
    """
    global resumes, signalled
    resumes, signalled, interrupts = "", 0, itertools.count(1)
    signal.signal(signal.SIGINT, lambda *_: _interrupt(next(interrupts)))
    for signum in STOPS:
        if signal.getsignal(signum) != signal.SIG_IGN:  # as nohup has it
            signal.signal(signum, _stop)
    sys.stdout, sys.stderr = _Output(sys.stdout), _Output(sys.stderr)
    hook, threading.excepthook = threading.excepthook, _thread_ended
    try:
        _run(main, parser)
        sys.stdout.flush()
        lost = sys.stdout.lost
        if lost is not None and lost.errno != errno.EPIPE:  # `| head` has what it wants
            end(f"error: standard output: {lost.strerror or lost}", 1)
    except BaseException as error:
        code = getattr(error, "code", 1)  # SystemExit's
        atexit.register(_leave_at_once, code if isinstance(code, int) else 1)
        raise
    finally:
        threading.excepthook = hook
        sys.stdout, sys.stderr = sys.stdout.stream, sys.stderr.stream
    if distributed := sys.modules.get("core.run.distributed"):
        distributed.finish()


def _thread_ended(args: threading.ExceptHookArgs) -> None:
    """Say what ended a thread, but of torch's that pins memory not that a loader was killed.

    It reads from the killed process as well; that one is named in a line.
    """
    lost = issubclass(args.exc_type, ConnectionError | EOFError)
    if not (lost and "_pin_memory_loop" in str(args.thread)):
        threading.__excepthook__(args)


class _Output:
    """A standard stream that cannot stop the work: what it fails to take is lost."""

    def __init__(self, stream: Any):
        self.stream = open(os.devnull, "w") if stream is None else stream  # noqa: SIM115
        self.lost: OSError | None = None  # the first error
        if hasattr(self.stream, "reconfigure"):  # of a class name that ASCII does not know
            self.stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        self._try(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self.stream.flush)

    def _try(self, act: Callable[[], object]) -> None:
        try:
            act()
        except OSError as error:
            self.lost = self.lost or error
            with contextlib.suppress(OSError):  # what is buffered goes nowhere, at exit too
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class _Stopped(SystemExit):
    """A signal of `STOPS`: unwinds, so that worker processes and temporary files go."""


def _stop(signum: int, _: object) -> None:
    global signalled
    signalled = signum
    sys.unraisablehook = lambda _: None  # of a fork's hook or a destructor that this breaks off
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # a DataLoader's, for processes that die as well
    raise _Stopped(128 + signum)


def _interrupt(count: int) -> None:
    """Ctrl-C: the first one unwinds, which the next must not break off halfway."""
    global signalled
    signalled = signal.SIGINT
    if count == 1:
        raise KeyboardInterrupt
    if count >= PATIENCE:
        os._exit(128 + signal.SIGINT)


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """Hold Ctrl-C and `STOPS` back where halfway is worse than late.

    Processes that start would die with a traceback, torch's zip writer would abort. The mask is for
    the processes, which inherit it (`parallel.ignore_interrupts` lifts it); here another thread may
    take the signal, so it is noted as well.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals, noted = (signal.SIGINT, *STOPS), list[int]()
    before = {s: signal.getsignal(s) for s in signals}
    for name, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(name, lambda number, _: noted.append(number))
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
        for name, handler in before.items():
            signal.signal(name, handler)
        for number in noted:
            signal.raise_signal(number)


def _run(main: Callable[[], None], parser: ParserMaker) -> None:
    try:
        try:
            main()
        except Exception as error:
            if _lost_the_others(error):
                time.sleep(10)  # whoever is the cause speaks first; the launcher ends this process
            elif isinstance(error, BrokenProcessPool) or LOST_LOADER.search(str(error)):
                time.sleep(1)  # a signal to all processes of the job comes to this one as well
            raise
    except (Exception, KeyboardInterrupt, _Stopped) as error:
        # Raised inside a destructor, what a signal raises is lost; what dies next is its doing.
        if signalled:
            end(f"{stopped_by(signalled)}; {again()}", 128 + signalled)
        usage = parser().format_usage() if parser else ""
        words = explain(error, set(re.findall(r"--[\w-]+", usage)))
        if words is None:
            _write(f"{type(error).__name__}: {first_line(error, 300)}; its traceback stands above")
            raise
        end(f"error: {words}", 1)


def explain(error: BaseException, options: set[str]) -> str | None:
    """What happened and what to do about it, in one line; None for what no user can help.

    This is the one place that knows how memory, helping processes and other ranks get lost.
    `options` are the script's, as `--name`.
    """
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, InputError):
        return str(error)
    if _lost_the_others(error):
        reason = re.sub(r"^\[\S+\] ", "", first_line(error, 300))  # gloo's own source file
        if found := NCCLS_REASON.search(text):
            reason = found[1].strip()[:300]
            for words, remedy in NCCLS_REMEDIES.items():
                if words in reason:
                    return f"NCCL: {reason}; {remedy}"
        return f"lost the connection to the other processes ({reason.split('. ')[0]}); {again()}"
    if "AF_UNIX path too long" in text:
        return "TMPDIR is too long for the sockets of processes; set a shorter one, and start again"
    shared = isinstance(error, OSError) or LOST_LOADER.search(text) or "shared memory" in text
    if shared and not os.access("/dev/shm", os.W_OK):
        what = "/dev/shm cannot be written, through which processes share memory"
        return f"{what}; mount it, or give --workers 0 and --jobs 1"
    if isinstance(error, BrokenProcessPool):
        what = "a worker process was killed (out of memory?)"
        savers = ["--jobs", "--max-side"]
    elif LOST_LOADER.search(text):
        what = "a loader process was killed (out of memory or /dev/shm?)"
        savers = ["--workers", "--crop", "--batch-images", "--scales", "--max-side"]
    elif "more than 1 value per channel" in text:
        what = "BatchNorm cannot train on one image at a time"
        return f"{what}; raise --batch-size, or lower --accumulate"
    elif "no kernel image is available" in text:
        what = "this GPU is not one that the installed torch was built for"
        return f"{what}; install a build that is, or give --device cpu and start again"
    elif out_of_memory(error):
        gpu, wanted = ON_GPU.search(text), WANTED.search(text)
        what = f"out of {'GPU ' * bool(gpu)}memory"
        if wanted:
            number, unit = wanted.groups()
            size = f"{int(number) >> 20} MiB" if unit == "bytes" else f"{number} {unit}"
            what += f" ({size} more wanted)"
        savers = list(SAVERS)
        if gpu:
            # Loaders take none of a GPU's; one job and 16 bits are there already, unless told.
            told = " ".join(sys.argv)
            at_best = [name for name, more in ON_A_GPU.items() if not re.search(more, told)]
            savers = [name for name in SAVERS if name not in at_best]
            if "--device" in options and not options & set(savers):
                return f"{what}; give --device cpu and start again"
    elif type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        why = " ".join(str(error).split())[:300]
        return f"--compile: {why}; fix that, or leave --compile out and start again"
    elif isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        remedy = REMEDIES.get(error.errno or 0, "")
        return f"{where}{error.strerror or error}; {remedy}{again()}"
    else:
        return None
    *first, last = [SAVERS[name] for name in savers if name in options] or [""]
    remedy = f"give {', '.join(first)}{' or ' * bool(first)}{last} and start again"
    return f"{what}; {remedy if last else again()}"


def _lost_the_others(error: BaseException) -> bool:
    """Whether a collective failed, most likely because another rank is gone."""
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    if not several or not isinstance(error, RuntimeError) or out_of_memory(error):
        return False
    names = {each.__name__ for each in type(error).__mro__}
    return "DistError" in names or bool(LOST.search(str(error)))


def _write(words: str) -> None:
    """Leave the last words for the launcher, if there is one."""
    if LAST_WORDS in os.environ:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # all is unwound; nothing may hold it up now
        path = Path(os.environ[LAST_WORDS])
        with contextlib.suppress(OSError):
            path.with_suffix(".tmp").write_text(words, encoding="utf-8")
            path.with_suffix(".tmp").rename(path)


def end(words: str, status: int) -> NoReturn:
    """Exit with a last line on stderr, or, of several processes, in the launcher's."""
    _write(words)
    sys.unraisablehook = lambda _: None  # of a half-made DataLoader, say: the line is the last
    if LAST_WORDS not in os.environ:
        print(words, file=sys.stderr)
    sys.exit(status)


def _leave_at_once(status: int) -> None:
    """Exit without the destructors of a process group whose other ranks are not at their end.

    They would wait for those or abort. Without a group this does nothing.
    """
    group = sys.modules.get("torch.distributed")
    if group is not None and group.is_initialized():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # a DataLoader's: it raises for the next line
        for child in multiprocessing.active_children():
            child.terminate()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
