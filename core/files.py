"""Writing files so that nobody ever sees half of one, and telling what a file or folder holds."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from core.errors import InputError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block ends well.

    The data reach the disk before the name does, so a crash leaves the old file or the new one.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path):
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let the errors of a block name `path`: those of a full disk name none."""
    try:
        yield
    except OSError as error:
        what = error.strerror or f"cannot be written ({error})"
        raise OSError(error.errno, what, str(path)) from None


def check_folder(out: Path) -> None:
    """Make sure, before the work, that a folder made beside `out` can take its place."""
    if os.path.ismount(out):
        raise InputError(f"{out}: a mount point cannot be replaced; give a folder in it")


def replace_folder(partial: Path, out: Path, old: Path) -> None:
    """Put `partial` in the place of `out`, which stands aside as `old` until then."""
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    partial.rename(out)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a folder beside `out`, which is empty or not there; it becomes `out` at the end.

    For files alone. Nobody sees half of it; where the block raises nothing is left.
    """
    check_folder(out)
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
        folder = Path(temporary) / out.name
        folder.mkdir()
        yield folder
        with naming(out):
            for path in folder.iterdir():
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
            folder.rename(out)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, all of it or nothing.

    Paths that are not UTF-8 hold surrogates; those become escapes, which JSON has.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, all of it or nothing."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_text(path: Path, remedy: str, max_bytes: int = 64 << 20) -> str:
    """Read a UTF-8 text file; InputError where it is missing, over `max_bytes` or not UTF-8."""
    try:
        if path.stat().st_size > max_bytes:
            raise InputError(f"{path}: over {max_bytes >> 20} MiB, not what it should be; {remedy}")
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; {remedy}") from None
    except (IsADirectoryError, NotADirectoryError):
        raise InputError(f"{path}: not a file; {remedy}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text; {remedy}") from None


def read_json(path: Path, remedy: str, max_bytes: int = 64 << 20) -> dict[str, Any]:
    """Read a JSON object; InputError where it is missing, damaged or something else."""
    try:
        value = json.loads(read_text(path, remedy, max_bytes))
    except (ValueError, RecursionError):  # ValueError also for numbers of many digits
        raise InputError(f"{path}: damaged or not JSON; {remedy}") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: not a JSON object; {remedy}")
    return value


def check_own(path: Path, key: str = "") -> None:
    """Make sure, before the work, that a JSON object with `key` can be written.

    Raises InputError where a file is there that is none, or is a stage's or evaluation's and should
    not be (no key), or where the folder cannot be written.
    """
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"{path}: its folder cannot be written; choose another")
    if path.exists():
        there = read_json(path, "choose another name for the result")
        if key not in there if key else {"stage", "run"} & there.keys():
            raise InputError(f"{path}: not a result of this script; choose another name")


def digest_text(parts: Iterable[str]) -> str:
    """SHA-256 (first 16 hex digits) of text parts in order."""
    data = (part.encode("utf-8", "surrogateescape") + b"\0" for part in parts)  # names of any bytes
    return hashlib.sha256(b"".join(data)).hexdigest()[:16]


def checksum(path: Path, algorithm: str = "sha256") -> str:
    """SHA-256 of a file's bytes, 64 hex digits; or another of hashlib's algorithms.

    Raises:
        InputError: it is missing or no regular file.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def checksums(paths: Iterable[Path]) -> list[str]:
    """`checksum` of each file."""
    with ThreadPoolExecutor(8) as pool:  # hashing and reading both release the GIL
        return list(pool.map(checksum, paths))


def digest_file(path: Path) -> str:
    """The first 16 digits of `checksum`."""
    return checksum(path)[:16]


def digest_files(paths: Iterable[Path]) -> str:
    """One digest of many files: their names and bytes, whatever the order given."""
    ordered = sorted(paths)
    sums = zip(ordered, checksums(ordered), strict=True)
    return digest_text(f"{path.name} {digest[:16]}" for path, digest in sums)
