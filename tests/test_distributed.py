"""Two processes give one process's results: weights, score files, label maps, figures."""

from __future__ import annotations

import json
import subprocess
import sys

import evaluate
import train_affinity

import pytest
import torch
from conftest import REPO, SMALL, run_stage, write_data_root
from faults.stages import STAGES, contents, differing

SHARED_STAGES = [n for n, s in STAGES.items() if s.script.startswith(("make", "predict"))]


def launch(script: str, *arguments: object) -> None:
    """Run a stage in two processes on this machine."""
    command = [sys.executable, "-m", "core.run.launch", "--processes", "2", str(REPO / script)]
    result = subprocess.run(
        [*command, *map(str, arguments)],
        cwd=REPO,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-2000:]


def test_frozen_batchnorm_training_is_that_of_one_process(data_root, tmp_path):
    """The same global batches and the same denominators: equal weights within 1e-5."""
    options = ["--data", data_root, "--split", "train", "--labels", data_root / "SegmentationClass",
               "--radius", 5, *SMALL]  # fmt: skip
    run_stage(train_affinity.main, *options, "--out", tmp_path / "one")
    launch("train_affinity.py", *options, "--out", tmp_path / "two")
    one, two = (torch.load(tmp_path / n / "model.pt", weights_only=True)["weights"]
                for n in ("one", "two"))  # fmt: skip
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-5, atol=1e-5)
    losses = [
        [json.loads(row)["loss"] for row in (tmp_path / n / "log.jsonl").read_text().splitlines()]
        for n in ("one", "two")
    ]
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]))


def test_held_out_images_are_seen_by_the_network_that_is_saved(tmp_path):
    """Each process has BatchNorm statistics of its own, and the look takes the saved ones."""
    data = write_data_root(tmp_path / "data", n_val=40)
    words = ["--data", data, "--split", "train", "--out", tmp_path / "c", *SMALL]
    launch("train_classification.py", *words, "--val", "val", "--amp", "auto")  # as evaluate.py
    rows = [json.loads(row) for row in (tmp_path / "c/log.jsonl").read_text().splitlines()]
    score = ["--classifier", tmp_path / "c", "--json", tmp_path / "ap.json", "--device", "cpu"]
    run_stage(evaluate.main, "--data", data, "--split", "val", *score)
    scored = json.loads((tmp_path / "ap.json").read_text())["mean_average_precision"]
    assert rows[-1]["ap"] == pytest.approx(scored, abs=1e-3)


@pytest.mark.parametrize("name", SHARED_STAGES)
def test_inference_is_shared_without_a_trace(inputs, tmp_path, name):
    """Each process takes a part of the images; the files are the same bytes."""
    stage = STAGES[name]
    launch(f"{stage.script}.py", *stage.arguments(inputs, tmp_path))
    assert not differing(contents(inputs, stage), contents(tmp_path, stage))


def test_scores_are_those_of_one_process(inputs, tmp_path):
    score = ["--data", inputs / "data", "--split", "train", "--scores", inputs / "rw",
             "--device", "cpu", "--jobs", 1]  # fmt: skip
    run_stage(evaluate.main, *score, "--json", tmp_path / "1.json")
    launch("evaluate.py", *score, "--json", tmp_path / "2.json")
    one, two = (json.loads((tmp_path / f"{n}.json").read_text()) for n in (1, 2))
    assert {k: v for k, v in one.items() if k != "run"} == {
        k: v for k, v in two.items() if k != "run"
    }


def test_a_checkpoint_is_scored_by_several_processes(inputs, tmp_path):
    """evaluate.py starts predict.py, within the group of processes that is there."""
    words = ("--data", inputs / "data", "--split", "val", "--device", "cpu", "--workers", 0)
    words += ("--checkpoint", inputs / "segmentation/model.pt", "--jobs", 1, "--no-crf")
    for n, start in ((1, run_stage), (2, launch)):
        more = ("--save-predictions", tmp_path / f"{n}", "--json", tmp_path / f"{n}.json")
        start(evaluate.main if n == 1 else "evaluate.py", *words, *more)
    one, two = (json.loads((tmp_path / f"{n}.json").read_text()) for n in (1, 2))
    assert one["confusion"] == two["confusion"] and one["miou"] == two["miou"]
