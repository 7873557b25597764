"""Directories made by hand, with the commands of docs/formats.md, read by every stage that can."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import REPO
from faults.stages import STAGES, contents


def by_hand(folder: Path, kind: str) -> None:
    """Leave the arrays or PNGs alone, then do what the page says."""
    for name in ("run.json", "SHA256SUMS"):
        (folder / name).unlink()
    page = (REPO / "docs/formats.md").read_text()
    block = next(b for b in re.findall(r"```bash\n(.*?)```", page, re.S) if "SHA256SUMS" in b)
    block = block.replace('\\"cat\\", \\"dog\\"', '\\"disc\\", \\"square\\", \\"bar\\"')
    if kind == "labels":
        block = block.replace("*.npz", "*.png").replace("scores", "labels")
    subprocess.run(["bash", "-euc", block], cwd=folder, check=True)
    assert json.loads((folder / "run.json").read_text()).keys() == {
        "holds", "finished", "classes", "digest"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("folder", "kind", "reader"),
    [
        ("cam", "scores", "affinity_labels"),
        ("cam", "scores", "rw"),
        ("rw", "scores", "pseudo"),
        ("affinity_labels", "labels", "affinity"),
        ("pseudo", "labels", "segmentation"),
    ],
)
def test_a_stage_reads_it(inputs, tmp_path, folder, kind, reader):
    """To the same result as from a stage's own directory."""
    shutil.copytree(inputs, tmp_path / "in", symlinks=True)
    by_hand(tmp_path / "in" / folder, kind)
    stage = STAGES[reader]
    stage.run(tmp_path / "in", tmp_path / "out")
    assert (tmp_path / "out" / reader / "run.json").exists()
    wanted = contents(inputs, stage)
    found = contents(tmp_path / "out", stage)
    same = [name for name in wanted if name.endswith((".npz", ".png"))]
    assert all(found[name] == wanted[name] for name in same)
