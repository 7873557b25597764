"""How every script ends: in one line where a user can help it, and with an exit status.

No torch in here: tools/doctor.py runs where torch is broken.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import FrameType

from core.errors import InputError, out_of_memory

LAST_WORDS = "LAST_WORDS"  # the file in which core/run/launch.py looks for a rank's reason to end
AGAIN = "the same command goes on from here"

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
LOADER_SAVERS = ("--workers", "--crop", "--batch-images", "--scales", "--max-side")
ON_GPU = re.compile(r"\b(?:CUDA|HIP|NCCL|CUBLAS|CUDNN|CUSPARSE|CUSOLVER)")
WANTED = re.compile(r"(?:tried|unable) to allocate ([\d.]+) ([KMGT]?i?B\w*)", re.IGNORECASE)
LOST = re.compile("gloo|NCCL|connection (?:closed|reset|refused)|broken pipe", re.IGNORECASE)


def run_main(
    main: Callable[[], None], parser: Callable[[], argparse.ArgumentParser] | None = None
) -> None:
    """Run a script's `main()`; bad input, too little memory, a full disk or Ctrl-C is one line.

    Exit status: 1 for bad input, memory or a failing file system, 130 for Ctrl-C, 143 for SIGTERM.
    A process group is left on the way out, also where a stage returned early.

    Args:
        parser: the script's `get_args_parser`: the memory that its options can save is advised.
    """
    signal.signal(signal.SIGTERM, _terminate)
    try:
        _run(main, parser)
    except BaseException as error:
        code = getattr(error, "code", 1)  # SystemExit's
        atexit.register(_leave_at_once, code if isinstance(code, int) else 1)
        raise
    if "torch.distributed" in sys.modules:
        from core.run import distributed

        distributed.finish()


def _run(main: Callable[[], None], parser: Callable[[], argparse.ArgumentParser] | None) -> None:
    try:
        main()
    except KeyboardInterrupt:
        _end(f"interrupted; {AGAIN}", 130)
    except Exception as error:
        if _lost_the_others(error):
            time.sleep(10)  # whoever is the cause speaks first, and the launcher ends this process
        usage = parser().format_usage() if parser else ""
        words = explain(error, set(re.findall(r"--[\w-]+", usage)))
        if words is None:
            _write(f"{type(error).__name__}: {_first_line(error)}; its traceback stands above")
            raise
        _end(f"error: {words}", 1)


def explain(error: BaseException, options: set[str]) -> str | None:
    """What happened and what to do about it, in one line; None for what no user can help.

    This is the one place that knows how memory, helping processes and other ranks get lost.

    Args:
        options: the script's, as `--name`.
    """
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, InputError):
        return str(error)
    if _lost_the_others(error):
        reason = re.sub(r"^\[\S+\] ", "", _first_line(error))  # gloo's own source file
        return f"lost the connection to the other processes ({reason.split('. ')[0]}); {AGAIN}"
    if isinstance(error, BrokenProcessPool):
        what = "a worker process was killed (out of memory?)"
        savers = ["--jobs", "--max-side"]
    elif re.search(r"DataLoader worker \(pid|</torch_", text):
        what = "a loader process was killed (out of memory or /dev/shm?)"
        savers = list(LOADER_SAVERS)
    elif out_of_memory(error):
        gpu, wanted = ON_GPU.search(text), WANTED.search(text)
        what = f"out of {'GPU ' * bool(gpu)}memory"
        if wanted:
            number, unit = wanted.groups()
            size = f"{int(number) >> 20} MiB" if unit == "bytes" else f"{number} {unit}"
            what += f" ({size} more wanted)"
        savers = [name for name in SAVERS if not (gpu and name == "--workers")]
    elif isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}; {AGAIN}"
    else:
        return None
    *first, last = [SAVERS[name] for name in savers if name in options] or [""]
    remedy = f"give {', '.join(first)}{' or ' * bool(first)}{last} and start again"
    return f"{what}; {remedy if last else AGAIN}"


def _lost_the_others(error: BaseException) -> bool:
    """Whether a collective failed, most likely because another rank is gone."""
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    text = str(error)
    if not several or not isinstance(error, RuntimeError) or out_of_memory(error):
        return False
    names = {each.__name__ for each in type(error).__mro__}
    return "DistError" in names or bool(LOST.search(text))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]


def _terminate(signum: int, _: FrameType | None) -> None:
    sys.exit(128 + signum)  # unwinds, so that worker processes and temporary files go


def _write(words: str) -> None:
    """Leave the last words for the launcher, if there is one."""
    if LAST_WORDS in os.environ:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # all is unwound; nothing may hold it up now
        path = Path(os.environ[LAST_WORDS])
        with contextlib.suppress(OSError):
            path.with_suffix(".tmp").write_text(words, encoding="utf-8")
            path.with_suffix(".tmp").rename(path)


def _end(words: str, status: int) -> None:
    _write(words)
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
