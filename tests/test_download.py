"""tools/download.py: a server that misbehaves, wrong check sums, full disks."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from core.errors import InputError
from tools import download as downloads

import pytest
from faults.stages import can_mount, small_disk
from loopback import Server, serving

DATA = os.urandom(300_000)
MD5 = hashlib.md5(DATA).hexdigest()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(downloads, "PAUSE", 0.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving() as server:
        server.files["a.tar"] = DATA
        yield server


def fetch(server: Server, path: Path, *sources: str, md5: str = MD5) -> None:
    downloads.download(sources or [f"{server.url}/a.tar"], path, md5)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_download(server, tmp_path):
    fetch(server, tmp_path / "new" / "a.tar")
    assert (tmp_path / "new" / "a.tar").read_bytes() == DATA
    assert names(tmp_path / "new") == ["a.tar"] and server.asked == [""]


def test_cut_connection_goes_on_from_there(server, tmp_path):
    server.cuts = [100_000, 0, 50_000]
    fetch(server, tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_bytes() == DATA
    assert server.asked == ["", "bytes=100000-", "bytes=100000-", "bytes=150000-"]


def test_what_came_before_is_kept_for_the_next_start(server, tmp_path):
    server.cuts = [70_000, *[0] * downloads.TRIES]
    with pytest.raises(InputError, match=r"cut at 70000 of 300000 bytes .70000 bytes") as caught:
        fetch(server, tmp_path / "a.tar")
    assert "--mirror" in str(caught.value) and "\n" not in str(caught.value)
    assert names(tmp_path) == ["a.tar.part"]
    server.asked.clear()
    fetch(server, tmp_path / "a.tar")
    assert server.asked == ["bytes=70000-"] and (tmp_path / "a.tar").read_bytes() == DATA


def test_server_without_ranges_starts_again(server, tmp_path):
    server.knows_ranges = False
    (tmp_path / "a.tar.part").write_bytes(DATA[:1000])
    fetch(server, tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_bytes() == DATA


def test_part_that_is_whole_is_taken(server, tmp_path):
    (tmp_path / "a.tar.part").write_bytes(DATA)
    fetch(server, tmp_path / "a.tar")
    assert names(tmp_path) == ["a.tar"]


def test_wrong_checksum_is_removed(server, tmp_path):
    (tmp_path / "a.tar.part").write_bytes(b"of another file")
    with pytest.raises(InputError, match="the check sum is wrong") as caught:
        fetch(server, tmp_path / "a.tar")
    assert names(tmp_path) == [] and "\n" not in str(caught.value)
    fetch(server, tmp_path / "a.tar")  # and the next start is right


def test_moved_and_busy_hosts(server, tmp_path):
    with pytest.raises(InputError, match=r"b\.tar: HTTP status 404, has it moved\?.*--mirror"):
        fetch(server, tmp_path / "b.tar", f"{server.url}/b.tar")
    assert names(tmp_path) == []
    server.statuses = [503, 429]
    fetch(server, tmp_path / "a.tar", f"{server.url}/b.tar", f"{server.url}/a.tar")
    for url in ("ftp://a/a.tar", "file:///etc/hosts", "http://[", "nonsense"):
        with pytest.raises(InputError, match="URL"):
            fetch(server, tmp_path / "c.tar", url)
    with pytest.raises(InputError, match="no connection"):
        fetch(server, tmp_path / "c.tar", "http://127.0.0.1:9/a.tar")


def test_two_at_once(server, tmp_path):
    with open(tmp_path / "a.tar.part", "ab") as file:
        downloads.fcntl.flock(file, downloads.fcntl.LOCK_EX)
        with pytest.raises(InputError, match="another process is downloading it"):
            fetch(server, tmp_path / "a.tar")


def test_full_disk(server, tmp_path, monkeypatch):
    if not can_mount(tmp_path / "disk"):
        pytest.skip("may not mount a small disk")
    with small_disk(tmp_path / "disk", 128) as disk:
        with pytest.raises(InputError, match=r"needs 0\.3 MiB more, 0\.1 are free; make room"):
            fetch(server, disk / "a.tar")
        usage = shutil.disk_usage(disk)._replace(free=1 << 30)  # another process takes the room
        monkeypatch.setattr(downloads.shutil, "disk_usage", lambda _: usage)
        with pytest.raises(OSError, match="No space left") as caught:
            fetch(server, disk / "a.tar")
        assert caught.value.filename == str(disk / "a.tar.part") and names(disk) == ["a.tar.part"]
        subprocess.run(["mount", "-o", "remount,size=1m", disk], check=True)
        server.asked.clear()
        fetch(server, disk / "a.tar")
        assert server.asked[0] != "" and (disk / "a.tar").read_bytes() == DATA
