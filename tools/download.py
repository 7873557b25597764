"""A large file over HTTP: gone on with where it was cut, checked before it gets its name.

While it comes it is `<name>.part`; a later start asks the server for the rest alone (HTTP Range).
"""

import fcntl
import http.client
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from core.errors import InputError
from core.files import checksum, naming
from core.progress import Bar

CHUNK = 1 << 20  # bytes that are read at a time
TIMEOUT = 60.0  # seconds without a byte
TRIES = 5  # in a row that bring nothing
PAUSE = 1.0  # seconds before the second try, twice that before the third, and so on
PASSING = (408, 429, 500, 502, 503, 504)  # statuses that may be others in a while


class Cut(Exception):
    """The connection ended early, or there was none: worth another try."""


def download(sources: Sequence[str], path: Path, wanted: str) -> None:
    """Get `path`, whose MD5 is `wanted`, from the first of the URLs that gives it.

    Raises:
        InputError: no source gives it, what came has another check sum (it is removed), or there
            is no room for it. What came before a cut stays, for the next start.
        OSError: the disk is full or fails.
    """
    part, failures = path.with_name(f"{path.name}.part"), []
    with naming(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    for url in sources:
        try:
            _fetch(url, part)
            found = checksum(part, "md5")
            if found == wanted:
                os.replace(part, path)
                return
            failures.append(f"{url}: the check sum is wrong (MD5 {found}, not {wanted}), removed")
            part.unlink()
        except InputError as error:
            failures.append(str(error))
    remedy = f"start it again, give --mirror URL, or put the file at {path} yourself"
    raise InputError(f"{'; '.join(failures)}; {remedy}")


def _fetch(url: str, part: Path) -> None:
    """Append to `part` what is lacking of a URL; tried again while something comes."""
    if not url.lower().startswith(("http://", "https://")):
        raise InputError(f"{url}: not an http or https URL")
    # A network's errors are Cut or InputError: the OSErrors that `naming` sees are the disk's.
    with naming(part), open(part, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{part}: another process is downloading it; wait for that") from None
        try:
            _receive_all(url, part, file)
            os.fsync(file.fileno())
        finally:
            if not file.tell():  # nothing came: leave nothing
                part.unlink(missing_ok=True)


def _receive_all(url: str, part: Path, file: BinaryIO) -> None:
    """As many connections as it takes; InputError after `TRIES` in a row that bring nothing."""
    failed = 0
    while True:
        before = file.tell()
        try:
            return _receive(url, part, file)
        except Cut as cut:
            failed = 0 if file.tell() > before else failed + 1
            if failed >= TRIES:
                come = f"{file.tell()} bytes came and are kept"
                raise InputError(f"{url}: {cut} ({come})") from None
        time.sleep(PAUSE * 2 ** max(failed - 1, 0))


def _receive(url: str, part: Path, file: BinaryIO) -> None:
    """One connection: from the end of `file` on, or from the start where the server wants that."""
    start = file.tell()
    response = _open(url, start)
    if response is None:  # nothing is lacking
        return
    with response:
        if response.status != 206 or not _starts(response, start):
            if response.status == 206:
                raise InputError(f"{url}: the server gave another range than was asked for")
            file.truncate(start := 0)
            file.seek(0)
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdecimal() else None
        free = shutil.disk_usage(part.parent).free
        if total is not None and total - start > free:
            needed = f"needs {(total - start) / 2**20:.1f} MiB more, {free / 2**20:.1f} are free"
            raise InputError(f"{part}: {needed}; make room")
        words = {"desc": part.stem, "unit": "B", "unit_scale": True, "dynamic_ncols": True}
        with Bar(initial=start, total=total, **words) as bar:
            while block := _read(response):
                file.write(block)
                bar.update(len(block))
        file.flush()
    if total is not None and file.tell() < total:
        raise Cut(f"the connection was cut at {file.tell()} of {total} bytes")


def _starts(response: http.client.HTTPResponse, start: int) -> bool:
    return response.headers.get("Content-Range", "").startswith(f"bytes {start}-")


def _open(url: str, start: int) -> http.client.HTTPResponse | None:
    """The server's answer; None where it says that nothing comes after `start`."""
    headers = {"Range": f"bytes={start}-"} if start else {}
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:
            return None
        if error.code in PASSING:
            raise Cut(f"HTTP status {error.code}") from None
        raise InputError(f"{url}: HTTP status {error.code}, has it moved?") from None
    except ValueError as error:
        raise InputError(f"{url}: not a URL ({error})") from None
    except (OSError, http.client.HTTPException) as error:
        raise Cut(f"no connection ({getattr(error, 'reason', error)})") from None


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise Cut(f"the connection was cut ({error})") from None
