"""Errors a user can fix, reported in one line (core/run/main.py prints them)."""

import re

# The words of torch (GPU and CPU), NumPy, cuBLAS, cuDNN, and of the kernel for maps and threads.
NO_MEMORY = re.compile(
    r"out of memory|not enough memory|can(?:'|no)t allocate memory|unable to allocate|MemoryError|"
    r"bad[ _]alloc|insufficient memory|_ALLOC(?:ATION)?_FAILED|can't start new thread|"
    # On a full GPU cuDNN finds no algorithm whose workspace fits, and no handle can be made.
    r"unable to mmap|unable to find an engine|CU(?:BLAS|DNN)_STATUS_NOT_INITIALIZED",
    re.IGNORECASE,
)


class InputError(Exception):
    """Bad input. The message is one line that names the file and the remedy."""

    def __init__(self, message: str):
        # A DataLoader re-raises a worker's exception with its whole traceback as the message.
        line = " ".join(message.rsplit("InputError: ", 1)[-1].strip().splitlines())
        super().__init__(line if len(line) < 2000 else f"{line[:2000]} ...")


def first_line(error: BaseException, length: int = 200) -> str:
    """What an error says, cut to one line; its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:length]


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a GPU or for the CPU, here or in a process that worked for this.

    By its text: what a loader's or a pool's process raised comes wrapped, and torch raises plain
    RuntimeErrors.
    """
    return NO_MEMORY.search(f"{type(error).__name__}: {error}") is not None
