"""The six stages end to end, on the tiny set and (where it is at hand) on real VOC images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED, SMALL, run_stage, write_data_root
from PIL import Image

import evaluate
import make_cam
import make_pseudo_labels
import train_affinity
import train_classification
import train_segmentation
from core.data.images import voc_palette

REAL = SHARED / "realvoc" / "VOC2012"


def six_stages(data: Path, runs: Path, train: str, val: str, small: list[str]) -> None:
    """Run everything; outputs go to the names the README uses."""
    cpu = ["--device", "cpu", "--amp", "off", "--workers", 0]
    crf = ["--jobs", 1]
    base = ["--data", data, "--split", train]
    puzzle = runs / "classification" / "model.pt"
    run_stage(train_classification.main, *base, "--out", puzzle.parent, *small)
    run_stage(make_cam.main, *base, *cpu, "--checkpoint", puzzle, "--out", runs / "cam")
    small = [*small, "--weights", puzzle]
    run_stage(train_affinity.main, *base, "--cams", runs / "cam", "--out", runs / "affinity",
              "--radius", 5, *small, *crf)  # fmt: skip
    run_stage(make_pseudo_labels.main, *base, *cpu, *crf, "--cams", runs / "cam",
              "--affinity", runs / "affinity" / "model.pt", "--log2-steps", 4, "--pad-to", 64,
              "--save-scores", runs / "rw", "--out", runs / "pseudo")  # fmt: skip
    run_stage(train_segmentation.main, *base, "--labels", runs / "pseudo",
              "--out", runs / "segmentation", *small)  # fmt: skip
    score = ["--data", data, *cpu, *crf]
    for name in ("cam", "rw"):
        run_stage(evaluate.main, *score, "--split", train, "--cams", runs / name,
                  "--masks", "SegmentationClass", "--json", runs / f"{name}.json")  # fmt: skip
    run_stage(evaluate.main, *score, "--split", train, "--labels", runs / "pseudo",
              "--json", runs / "pseudo.json")  # fmt: skip
    run_stage(evaluate.main, *score, "--split", val, "--scales", 0.5, 1,
              "--checkpoint", runs / "segmentation" / "model.pt",
              "--save-predictions", runs / "predictions", "--json", runs / "val.json")  # fmt: skip


def check_artefacts(runs: Path, ids: list[str], classes: int) -> None:
    for folder in ("classification", "cam", "affinity", "pseudo", "rw", "segmentation"):
        record = json.loads((runs / folder / "run.json").read_text())
        assert record["finished"] is True
        assert {"argv", "arguments", "versions", "git", "seed", "device", "seconds"} <= set(record)
    for folder in ("classification", "affinity", "segmentation"):
        for name in ("last.pt", "model.pt", "log.jsonl"):
            assert (runs / folder / name).stat().st_size > 0
    for image_id in ids:
        for folder in ("cam", "rw"):
            with np.load(runs / folder / f"{image_id}.npz", allow_pickle=False) as file:
                assert file["cam"].dtype == np.float16 and file["classes"].dtype == np.uint8
                height, width = file["size"].tolist()
                assert file["cam"].shape[1:] == ((height - 1) // 4 + 1, (width - 1) // 4 + 1)
                if folder == "cam":
                    # 0 where a barely trained network has nothing positive to say
                    assert all(m == 0 or abs(m - 1) < 2e-3 for m in file["cam"].max((1, 2)))
        label = Image.open(runs / "pseudo" / f"{image_id}.png")
        assert label.mode == "P" and label.getpalette()[:60] == voc_palette()[:60]
        assert set(np.unique(np.array(label))) <= set(range(classes + 1))
    assert not list(runs.rglob("*.tmp"))
    for name in ("cam", "rw", "pseudo", "val"):
        figures = json.loads((runs / f"{name}.json").read_text())
        assert 0 <= figures["miou"] <= 100
        assert {"iou", "fp", "fn", "threshold", "images"} <= set(figures)
        assert ("sweep" in figures) == (name in ("cam", "rw"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, Path]:
    """The six stages on the tiny set, run once for this file."""

    root = tmp_path_factory.mktemp("pipeline")
    data = write_data_root(root / "data")
    six_stages(data, root / "runs", "train", "val", SMALL)
    return data, root / "runs"


def test_tiny_set(finished):
    data, runs = finished
    ids = (data / "ImageSets/Segmentation/train.txt").read_text().split()
    check_artefacts(runs, ids, 3)
    assert sorted(p.stem for p in (runs / "predictions").glob("*.png")) == ["val0", "val1", "val2"]


def test_again_finds_everything_there(finished, capsys):
    data, runs = finished
    before = {p: p.stat().st_mtime_ns for p in runs.rglob("*") if p.suffix in (".pt", ".npz")}
    six_stages(data, runs, "train", "val", SMALL)
    assert capsys.readouterr().out.count("nothing to do") == 7  # with scores and predictions
    after = {p: p.stat().st_mtime_ns for p in runs.rglob("*") if p.suffix in (".pt", ".npz")}
    assert after == before


def test_deleted_predictions_are_made_anew(finished, capsys):
    """Though their score is on file."""
    data, runs = finished
    shutil.rmtree(runs / "predictions")
    six_stages(data, runs, "train", "val", SMALL)
    assert "scored before" in capsys.readouterr().out
    assert sorted(p.stem for p in (runs / "predictions").glob("*.png")) == ["val0", "val1", "val2"]


@pytest.mark.skipif(not REAL.is_dir(), reason="the real VOC images are not at hand")
def test_real_images(tmp_path):
    """Eight real images of native size through all six stages."""
    data = tmp_path / "VOC2012"
    (data / "ImageSets/Segmentation").mkdir(parents=True)
    for folder in ("JPEGImages", "Annotations", "SegmentationClass"):
        (data / folder).symlink_to(REAL / folder)
    ids = (REAL / "ImageSets/Segmentation/train.txt").read_text().split()[:4]
    val = (REAL / "ImageSets/Segmentation/val.txt").read_text().split()[:1]
    (data / "ImageSets/Segmentation/train.txt").write_text("\n".join(ids) + "\n")
    (data / "ImageSets/Segmentation/val.txt").write_text("\n".join(val) + "\n")
    six_stages(data, tmp_path / "runs", "train", "val", [*SMALL, "--epochs", "1"])
    check_artefacts(tmp_path / "runs", ids, 20)


def test_own_data_without_any_mask(tmp_path, capsys):
    """docs/own_data.md: three classes, no mask anywhere, label-free thresholds."""
    data, runs = write_data_root(tmp_path / "data", masks=False), tmp_path / "runs"
    base = ["--data", data, "--split", "train"]
    cpu = ["--device", "cpu", "--amp", "off", "--workers", 0]
    small = [*SMALL, "--epochs", 1]
    net = runs / "classification/model.pt"
    run_stage(train_classification.main, *base, "--out", net.parent, *small)
    run_stage(make_cam.main, *base, *cpu, "--checkpoint", net, "--out", runs / "cam")
    run_stage(make_pseudo_labels.main, *base, *cpu, "--jobs", 1, "--cams", runs / "cam",
              "--no-random-walk", "--threshold", "auto", "--out", runs / "pseudo")  # fmt: skip
    assert "each image its own" in capsys.readouterr().out
    model = runs / "segmentation/model.pt"
    run_stage(train_segmentation.main, *base, "--labels", runs / "pseudo",
              "--out", model.parent, *small)  # fmt: skip
    run_stage(evaluate.main, "--data", data, *cpu, "--jobs", 1, "--split", "val", "--scales", 1,
              "--checkpoint", model, "--save-predictions", runs / "predictions")  # fmt: skip
    assert "no ground truth: 3 predictions" in capsys.readouterr().out
    assert len(list((runs / "predictions").glob("*.png"))) == 3
