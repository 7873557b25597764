"""train_classification --val: what image-level labels alone tell of held-out images, by epoch."""

from __future__ import annotations

import json
import shutil

import evaluate
import train_classification
from core.errors import InputError
from core.run import inference, precision, training
from tools.reporting import charts, summarise
from tools.reporting.collect import collect

import pytest
import torch
from conftest import SMALL, run_stage

EPOCHS = 3


def train(data_root, out, *more: object) -> dict[str, bytes]:
    """The files of a training that take part in the comparisons."""
    words = ("--data", data_root, "--split", "train", "--out", out, *SMALL, "--epochs", EPOCHS)
    run_stage(train_classification.main, *words, "--log-every", 4, *more)
    return {name: (out / name).read_bytes() for name in ("model.pt", "log.jsonl")}


def rows(out) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_every_epoch_is_looked_at_and_nothing_else_changes(data_root, tmp_path, capsys):
    shutil.rmtree(data_root / "SegmentationClass")  # no mask is there to be opened
    as_evaluate = ("--amp", "auto")
    plain = train(data_root, tmp_path / "plain", *as_evaluate)
    looked = train(data_root, tmp_path / "runs/classification", "--val", "val", *as_evaluate)
    assert looked["model.pt"] == plain["model.pt"]
    found = [row for row in rows(tmp_path / "runs/classification") if "ap" in row]
    assert [row["epoch"] for row in found] == [1, 2, 3]
    assert f"ap {found[-1]['ap']:.2f}" in capsys.readouterr().err
    words = ("--classifier", tmp_path / "runs/classification", "--json", tmp_path / "ap.json")
    run_stage(evaluate.main, "--data", data_root, "--split", "val", *words)
    scored = json.loads((tmp_path / "ap.json").read_text())
    assert found[-1]["ap"] == scored["mean_average_precision"]
    assert {k: found[-1][f"ap/{k}"] for k in ("disc", "square", "bar")} == scored[
        "average_precision"
    ]
    row = collect([tmp_path / "runs"], [])[0].rows[0]
    titles = [title for title, _ in charts.curves(row)]
    assert "classification: average precision on held-out images" in titles
    said = summarise.classifier(row.seeds[0])
    assert f"precision {found[-1]['ap']:.1f} on held-out images at step 6 (lowest: " in said


def test_a_look_tries_no_algorithms_of_cudnn(data_root, tmp_path, monkeypatch):
    """Which pay for views of one size, not for pictures of many."""
    seen, original = [], inference.average_precision

    def noted(*given: object) -> dict:
        seen.append(torch.backends.cudnn.benchmark)
        return original(*given)

    monkeypatch.setattr(inference, "average_precision", noted)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    train(data_root, tmp_path / "a", "--val", "val")
    assert seen == EPOCHS * [False] and torch.backends.cudnn.benchmark


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_a_look_is_of_the_trainings_precision(data_root, tmp_path, monkeypatch, amp):
    """Whatever `auto` is here: `--amp off` may be what saves maps from fp16's overflow."""
    seen, original = set(), precision.autocast

    def noted(choice: str, device: torch.device) -> torch.autocast:
        seen.add(choice)
        return original(choice, device)

    monkeypatch.setattr(precision, "autocast", noted)
    train(data_root, tmp_path / "a", "--val", "val", "--amp", amp)
    assert seen == {amp}


@pytest.mark.parametrize("cut", [0, 2])
def test_an_interrupted_training_logs_the_same(data_root, tmp_path, monkeypatch, cut):
    """Between epochs; and after a look, before the checkpoint that should hold its row."""
    whole = train(data_root, tmp_path / "whole", "--val", "val")
    original = training.Trainer.save

    def interrupted(self):
        if self.step > cut:
            raise KeyboardInterrupt
        original(self)

    monkeypatch.setattr(training.Trainer, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(data_root, tmp_path / "cut", "--val", "val")
    monkeypatch.undo()
    record = tmp_path / "cut/run.json"
    before = json.loads(record.read_text())["seconds"]
    assert before > 0
    record.write_text(record.read_text().replace(f'"seconds": {before}', '"seconds": 1000.0'))
    assert train(data_root, tmp_path / "cut", "--val", "val") == whole
    assert json.loads(record.read_text())["seconds"] > 1000


def test_what_cannot_be_held_out_is_said_before_the_work(data_root, tmp_path):
    with pytest.raises(InputError, match="8 of its 8 images are trained on"):
        train(data_root, tmp_path / "out", "--val", "train")
    picture = data_root / "JPEGImages/val0.jpg"
    picture.rename(tmp_path / "val0.jpg")
    with pytest.raises(InputError, match="val0"):
        train(data_root, tmp_path / "out", "--val", "val")
    shutil.move(tmp_path / "val0.jpg", picture)
    whole = picture.read_bytes()
    picture.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"val0\.jpg: truncated or damaged"):
        train(data_root, tmp_path / "out", "--val", "val")
    picture.write_bytes(whole)
    labels = data_root / "labels.txt"
    words = [line.split() for line in labels.read_text().splitlines()]
    labels.write_text("\n".join(w[0] if w[0].startswith("val") else " ".join(w) for w in words))
    with pytest.raises(InputError, match="no class for any image"):
        train(data_root, tmp_path / "out", "--val", "val")
    assert not (tmp_path / "out/last.pt").exists()
