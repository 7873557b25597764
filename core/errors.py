"""Errors a user can mend, reported in one line."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from types import FrameType


class InputError(Exception):
    """Bad input. The message is one line that names the file and the remedy."""

    def __init__(self, message: str):
        # A DataLoader re-raises a worker's exception with its whole traceback as the message.
        line = " ".join(message.rsplit("InputError: ", 1)[-1].strip().splitlines())
        super().__init__(line if len(line) < 2000 else f"{line[:2000]} ...")


def _terminate(signum: int, _: FrameType | None) -> None:
    sys.exit(128 + signum)  # unwinds, so that worker processes and temporary files go


def run_main(main: Callable[[], None]) -> None:
    """Run a script's `main()`; bad input, a full disk or Ctrl-C ends it in one line.

    Exit status: 1 for bad input or a failing file system, 130 for Ctrl-C, 143 for SIGTERM.
    """
    signal.signal(signal.SIGTERM, _terminate)
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    except RuntimeError as error:  # torch raises this wherever the signal finds the program
        if "DataLoader worker" not in str(error):
            raise
        sys.exit(
            "error: a loader process was killed (out of memory or /dev/shm?); lower --workers; "
            "the same command goes on from here"
        )
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        sys.exit(f"error: {where}{error.strerror or error}; the same command goes on from here")
