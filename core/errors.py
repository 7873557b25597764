"""Errors a user can mend, reported in one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable


class InputError(Exception):
    """Bad input. The message is one line that names the file and the remedy."""


def run_main(main: Callable[[], None]) -> None:
    """Run a script's `main()`; an `InputError`, a full disk or Ctrl-C ends it in one line, no traceback.

    Exit status: 1 for bad input or a failing file system, 130 for Ctrl-C.
    """
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted; start the same command again to go on", file=sys.stderr)
        # Skip interpreter teardown: worker processes got the same signal and end by themselves.
        os._exit(130)
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        sys.exit(f"error: {error.strerror or error}{where}")
