"""The lock that keeps two runs out of one directory."""

import errno
import fcntl
import sys
import tempfile
from pathlib import Path
from typing import IO

from core import files
from core.errors import InputError

UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # Lustre, some NFS


def take(folder: Path) -> IO[str]:
    """Make `folder` and lock it until the returned file is closed or this process ends.

    Where the file system has no locks this warns and goes on without. A folder that cannot be
    written or that another process holds is an InputError.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "w")  # noqa: SIM115 - held for the run's life
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror})") from None
    try:
        if not _lock(file):
            words = "its file system has no locks; start no second run there, for nothing would"
            print(f"warning: {folder}: {words} keep it out", file=sys.stderr)
    except (BlockingIOError, PermissionError):
        file.close()
        raise InputError(f"{folder}: another process is writing there; wait for it") from None
    return file


def works(folder: Path) -> bool:
    """Whether the file system of `folder`, which exists, has locks."""
    with tempfile.TemporaryFile("w", dir=folder) as file:
        return _lock(file)


def _lock(file: IO[str]) -> bool:
    try:
        with files.naming(Path(str(file.name))):
            # A POSIX lock: unlike flock's it is not inherited by worker processes, which may
            # outlive a killed run for some seconds.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in UNSUPPORTED:
            return False
        raise
    return True
