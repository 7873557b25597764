"""Puzzle-CAM: the library half that the stage scripts share."""

import os
import signal
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_SCRIPT = Path(getattr(sys.modules["__main__"], "__file__", None) or ".").resolve()


def _leave(*_: object) -> None:
    os.write(2, b"interrupted\n")
    os._exit(128 + signal.SIGINT)


# Imports take seconds, and what a Ctrl-C makes of torch's are tracebacks. Nothing has begun then:
# a script leaves at once, until `run_main` takes over.
if _SCRIPT.parent in (_ROOT, _ROOT / "tools"):
    signal.signal(signal.SIGINT, _leave)

# For how long a thread of OpenMP spins before it sleeps; read when torch is imported. By default it
# is milliseconds: on two cores a training beside one busy process is then 30 times slower than
# alone, with this 3 times. Alone it costs 4%.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
