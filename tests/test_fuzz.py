"""Damaged and hostile files: every one is handled or refused in one line that names it.

Seeded and bounded: `REPEATS` mutated inputs a kind (2,900 in all) and the bombs of `BOMBS`. No
other exception, no hang, no memory blow-up, and no file runs code.
"""

from __future__ import annotations

import resource
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

from core.data import images
from core.data.datasets import DataRoot

import numpy as np
import pytest
from conftest import write_cams, write_data_root
from faults.stages import row
from fuzz.bombs import BOMBS
from fuzz.mutations import REPEATS, damaged, other_checkpoints, other_records
from fuzz.reading import LIMIT_BYTES, LIMIT_SECONDS, Hang, refusal


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A data root with every kind of file, its directory of CAMs, and an address space limit."""
    write_data_root(tmp_path / "data")
    (tmp_path / "data/Annotations").mkdir()
    write_cams(tmp_path / "data", tmp_path / "data/cams")
    before = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 3 * LIMIT_BYTES, before[1]))
    yield tmp_path / "data"
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("kind", REPEATS)
def test_mutated(root, kind):
    where, make, read, repeats = REPEATS[kind]
    path = root / where
    good = make(root)
    rng = np.random.default_rng(zlib.crc32(kind.encode()))
    ready_made = make in (other_checkpoints, other_records)
    refused, wrong = 0, []
    for number in range(repeats):
        data = good[number % len(good)]
        path.write_bytes(data if ready_made else damaged(data, rng))
        try:
            refused += refusal(read, path) is not None
        except (Exception, Hang) as error:
            wrong.append(f"input {number}: {type(error).__name__}: {str(error)[:200]}")
    outcome = f"{refused} refused in one line, {repeats - refused} read"
    row(f"damaged {kind}", "seeded mutations", repeats, outcome)
    assert not wrong, f"{len(wrong)} of {repeats}: " + "; ".join(wrong[:5])
    assert refused >= repeats // 10, f"only {refused} of {repeats} refused: a mutation that is none"


def test_enough_inputs():
    assert sum(entry[3] for entry in REPEATS.values()) >= 2000


@pytest.mark.parametrize("name", BOMBS)
def test_bomb(root, monkeypatch, recwarn, name):
    where, write, read, message = BOMBS[name]
    write(root / where)
    monkeypatch.chdir(root)  # where a payload would leave its mark
    began = time.monotonic()
    said = refusal(read, root / where)
    assert said is not None and any(part in said for part in message.split("|")), said
    assert not list(root.rglob("pwned")) and time.monotonic() - began < LIMIT_SECONDS
    shown = [str(w.message) for w in recwarn if not issubclass(w.category, DeprecationWarning)]
    assert not shown


def test_unusual_names_work(tmp_path):
    """Spaces and letters of other scripts are no attack."""
    root = write_data_root(tmp_path / "data", classes=("Größe", "с пробелом"))
    names = ["ein Bild", "größe", "картинка.1"]
    for number, name in enumerate(names):
        (root / f"JPEGImages/train{number}.jpg").rename(root / f"JPEGImages/{name}.jpg")
    (root / "ImageSets/Segmentation/odd.txt").write_text("\n".join(names), encoding="utf-8")
    rows = "".join(f"{name}\tGröße\tс пробелом\n" for name in names)
    (root / "labels.txt").write_text(rows, encoding="utf-8")
    data = DataRoot(root)
    assert data.ids("odd") == names
    assert data.image_labels(names) == {name: [1, 2] for name in names}
    assert all(images.read_image(data.image_path(name)).shape == (3, 48, 64) for name in names)
