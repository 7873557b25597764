"""Directories made by hand, with the commands of docs/formats.md, read by every stage that can."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import evaluate

import numpy as np
import pytest
from conftest import REPO, run_stage
from faults.stages import STAGES, contents
from PIL import Image


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


def test_masks_without_any_class_give_no_nan(data_root, tmp_path, capsys):
    """Neither in the JSON, which has none, nor without a word."""
    for path in (data_root / "SegmentationClass").iterdir():
        Image.fromarray(np.zeros((48, 64), np.uint8)).save(path)
    words = ("--data", data_root, "--split", "val", "--labels", data_root / "SegmentationClass")
    run_stage(evaluate.main, *words, "--device", "cpu", "--json", tmp_path / "val.json")
    text = (tmp_path / "val.json").read_text()
    found = json.loads(text)
    assert "NaN" not in text and (found["fp"], found["fn"], found["miou"]) == (None, None, 100)
    assert "no class in the masks nor in the labels" in capsys.readouterr().out
