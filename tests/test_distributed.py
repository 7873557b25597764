"""Two processes give one process's results: weights, CAM files, label maps, scores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from conftest import REPO, SMALL, run_stage, write_cams

import evaluate
import make_cam
import make_pseudo_labels
import train_affinity
import train_classification

CPU = ["--device", "cpu", "--amp", "off", "--workers", 0]


def torchrun(script: str, *arguments: object) -> None:
    """Run a stage in two processes on this machine."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    command = [*launcher, "2", str(REPO / script), *map(str, arguments)]
    result = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-2000:]


def same_files(one: Path, two: Path, pattern: str) -> int:
    names = sorted(p.name for p in one.glob(pattern))
    assert names == sorted(p.name for p in two.glob(pattern))
    assert all((one / n).read_bytes() == (two / n).read_bytes() for n in names)
    return len(names)


def test_frozen_batchnorm_training_is_that_of_one_process(data_root, tmp_path):
    """The same global batches and the same denominators: equal weights within 1e-5."""
    write_cams(data_root, tmp_path / "cams")
    options = ["--data", data_root, "--split", "train", "--cams", tmp_path / "cams",
               "--radius", 5, "--jobs", 1, *SMALL]  # fmt: skip
    run_stage(train_affinity.main, *options, "--out", tmp_path / "one")
    torchrun("train_affinity.py", *options, "--out", tmp_path / "two")
    assert same_files(tmp_path / "one/labels", tmp_path / "two/labels", "*.png") == 8
    one, two = (torch.load(tmp_path / n / "model.pt", weights_only=True)["weights"]
                for n in ("one", "two"))  # fmt: skip
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-5, atol=1e-5)
    losses = [
        [json.loads(row)["loss"] for row in (tmp_path / n / "log.jsonl").read_text().splitlines()]
        for n in ("one", "two")
    ]
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]))


def test_inference_is_shared_without_a_trace(data_root, tmp_path):
    """Each process takes a part of the images; the files are the same bytes."""
    base = ["--data", data_root, "--split", "train"]
    run_stage(train_classification.main, *base, "--out", tmp_path / "net", *SMALL, "--epochs", 1)
    model = tmp_path / "net/model.pt"

    cam = [*base, *CPU, "--checkpoint", model]
    run_stage(make_cam.main, *cam, "--out", tmp_path / "cam1")
    torchrun("make_cam.py", *cam, "--out", tmp_path / "cam2")
    assert same_files(tmp_path / "cam1", tmp_path / "cam2", "*.npz") == 8

    label = [*base, *CPU, "--jobs", 1, "--cams", tmp_path / "cam1", "--no-random-walk"]
    run_stage(make_pseudo_labels.main, *label, "--out", tmp_path / "label1")
    torchrun("make_pseudo_labels.py", *label, "--out", tmp_path / "label2")
    assert same_files(tmp_path / "label1", tmp_path / "label2", "*.png") == 8

    score = [*base, *CPU, "--jobs", 1, "--cams", tmp_path / "cam1"]
    run_stage(evaluate.main, *score, "--json", tmp_path / "1.json")
    torchrun("evaluate.py", *score, "--json", tmp_path / "2.json")
    one, two = (json.loads((tmp_path / f"{n}.json").read_text()) for n in (1, 2))
    assert {k: v for k, v in one.items() if k != "run"} == {
        k: v for k, v in two.items() if k != "run"
    }
