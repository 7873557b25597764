"""All stages end to end, on the tiny set and (where it is at hand) on real VOC images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import evaluate
import make_affinity_labels
import make_cam
import make_pseudo_labels
import make_random_walk
import predict
import train_affinity
import train_classification
import train_segmentation
from core.data.images import voc_palette
from core.errors import InputError
from core.run import artefacts

import numpy as np
import pytest
from conftest import SHARED, SMALL, run_stage, write_data_root
from PIL import Image

REAL = SHARED / "realvoc" / "VOC2012"


def all_stages(data: Path, runs: Path, train: str, val: str, small: list[str]) -> None:
    """Run everything; outputs go to the names the README uses."""
    cpu = ["--device", "cpu"]
    infer = [*cpu, "--amp", "off", "--workers", 0]
    crf = [*cpu, "--jobs", 1]
    base = ["--data", data, "--split", train]
    classifier, boundaries, model = (
        runs / name / "model.pt" for name in ("classification", "affinity", "segmentation")
    )
    run_stage(train_classification.main, *base, "--out", classifier.parent, *small)
    run_stage(make_cam.main, *base, *infer, "--checkpoint", classifier, "--out", runs / "cam")
    run_stage(make_affinity_labels.main, *base, *crf, "--scores", runs / "cam",
              "--out", runs / "affinity_labels")  # fmt: skip
    small = [*small, "--weights", classifier]
    run_stage(train_affinity.main, *base, "--labels", runs / "affinity_labels",
              "--out", boundaries.parent, "--radius", 5, *small)  # fmt: skip
    run_stage(make_random_walk.main, *base, *infer, "--scores", runs / "cam", "--checkpoint",
              boundaries, "--log2-steps", 4, "--pad-to", 64, "--out", runs / "rw")  # fmt: skip
    run_stage(make_pseudo_labels.main, *base, *crf, "--scores", runs / "rw",
              "--out", runs / "pseudo")  # fmt: skip
    run_stage(train_segmentation.main, *base, "--labels", runs / "pseudo",
              "--out", model.parent, *small)  # fmt: skip
    for name in ("cam", "rw"):
        run_stage(evaluate.main, *base, *crf, "--scores", runs / name,
                  "--json", runs / f"{name}.json")  # fmt: skip
    run_stage(evaluate.main, *base, *crf, "--labels", runs / "pseudo",
              "--json", runs / "pseudo.json")  # fmt: skip
    run_stage(evaluate.main, "--data", data, "--split", val, *crf, "--checkpoint", model,
              "--save-predictions", runs / "predictions", "--json", runs / "val.json",
              "--scales", 0.5, 1, "--amp", "off", "--workers", 0)  # fmt: skip


HOLDS = {
    "classification": "model",
    "cam": "scores",
    "affinity_labels": "labels",
    "affinity": "model",
    "rw": "scores",
    "pseudo": "labels",
    "segmentation": "model",
    "predictions": "labels",
}


def check_artefacts(runs: Path, ids: list[str], classes: int) -> None:
    for folder, holds in HOLDS.items():
        made = json.loads((runs / folder / "run.json").read_text())
        assert made["finished"] is True and made["holds"] == holds
        assert len(made["classes"]) == classes
        assert artefacts.read(runs / folder, holds, made["classes"]) == made
        assert {"argv", "arguments", "versions", "git", "seed", "device", "seconds"} <= set(made)
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
    """All stages on the tiny set, run once for this file."""

    root = tmp_path_factory.mktemp("pipeline")
    data = write_data_root(root / "data")
    all_stages(data, root / "runs", "train", "val", SMALL)
    return data, root / "runs"


def test_tiny_set(finished):
    data, runs = finished
    ids = (data / "ImageSets/Segmentation/train.txt").read_text().split()
    check_artefacts(runs, ids, 3)
    assert sorted(p.stem for p in (runs / "predictions").glob("*.png")) == ["val0", "val1", "val2"]


def test_again_finds_everything_there(finished, capsys):
    data, runs = finished
    before = {p: p.stat().st_mtime_ns for p in runs.rglob("*") if p.suffix in (".pt", ".npz")}
    all_stages(data, runs, "train", "val", SMALL)
    assert capsys.readouterr().out.count("nothing to do") == 8
    after = {p: p.stat().st_mtime_ns for p in runs.rglob("*") if p.suffix in (".pt", ".npz")}
    assert after == before


def test_deleted_predictions_are_made_again(finished, capsys):
    """Though their score is on file."""
    data, runs = finished
    shutil.rmtree(runs / "predictions")
    all_stages(data, runs, "train", "val", SMALL)
    assert "scored before" in capsys.readouterr().out
    assert sorted(p.stem for p in (runs / "predictions").glob("*.png")) == ["val0", "val1", "val2"]


@pytest.mark.skipif(not REAL.is_dir(), reason="the real VOC images are not at hand")
def test_real_images(tmp_path):
    """Eight real images of native size through all stages."""
    data = tmp_path / "VOC2012"
    (data / "ImageSets/Segmentation").mkdir(parents=True)
    for folder in ("JPEGImages", "Annotations", "SegmentationClass"):
        (data / folder).symlink_to(REAL / folder)
    ids = (REAL / "ImageSets/Segmentation/train.txt").read_text().split()[:4]
    val = (REAL / "ImageSets/Segmentation/val.txt").read_text().split()[:1]
    (data / "ImageSets/Segmentation/train.txt").write_text("\n".join(ids) + "\n")
    (data / "ImageSets/Segmentation/val.txt").write_text("\n".join(val) + "\n")
    all_stages(data, tmp_path / "runs", "train", "val", [*SMALL, "--epochs", "1"])
    check_artefacts(tmp_path / "runs", ids, 20)


def test_own_data_without_any_mask(tmp_path, capsys):
    """docs/own_data.md: three classes, no mask anywhere, label-free thresholds, no walk."""
    data, runs = write_data_root(tmp_path / "data", masks=False), tmp_path / "runs"
    base = ["--data", data, "--split", "train"]
    infer = ["--device", "cpu", "--amp", "off", "--workers", 0]
    small = [*SMALL, "--epochs", 1]
    net, model = (runs / name / "model.pt" for name in ("classification", "segmentation"))
    run_stage(train_classification.main, *base, "--out", net.parent, *small)
    run_stage(make_cam.main, *base, *infer, "--checkpoint", net, "--out", runs / "cam")
    run_stage(make_pseudo_labels.main, *base, "--device", "cpu", "--jobs", 1, "--threshold",
              "auto", "--scores", runs / "cam", "--out", runs / "pseudo")  # fmt: skip
    assert "each image its own" in capsys.readouterr().out
    run_stage(train_segmentation.main, *base, "--labels", runs / "pseudo",
              "--out", model.parent, *small)  # fmt: skip
    run_stage(predict.main, "--data", data, "--split", "val", *infer, "--jobs", 1, "--scales", 1,
              "--checkpoint", model, "--out", runs / "predictions")  # fmt: skip
    assert len(list((runs / "predictions").glob("*.png"))) == 3
    with pytest.raises(InputError, match="no ground truth for split 'val'"):
        run_stage(evaluate.main, "--data", data, "--split", "val", "--device", "cpu",
                  "--labels", runs / "predictions")  # fmt: skip


def test_the_map_that_was_scored_is_named(finished, tmp_path, capsys):
    """hr_cam is another map than the default, and table and JSON say which one was scored."""
    data, runs = finished
    base = ["--data", data, "--split", "train", "--device", "cpu"]
    run_stage(make_cam.main, *base, "--checkpoint", runs / "classification/model.pt", "--out",
              tmp_path / "cam", "--map", "hr_cam", "--amp", "off", "--workers", 0)  # fmt: skip
    for folder, name in ((tmp_path / "cam", "hr_cam"), (runs / "cam", "cam"),
                         (runs / "rw", "random walk from cam")):  # fmt: skip
        run_stage(evaluate.main, *base, "--scores", folder, "--jobs", 1, "--thresholds", "paper",
                  "--json", tmp_path / "scores.json", "--overwrite")  # fmt: skip
        figures = json.loads((tmp_path / "scores.json").read_text())
        assert figures["map"] == name and name in capsys.readouterr().out
        thresholds = [row["threshold"] for row in figures["sweep"]]
        assert thresholds == pytest.approx([0.05 * i for i in range(1, 16)])
    one, other = (
        np.load(folder / "train0.npz")["cam"] for folder in (tmp_path / "cam", runs / "cam")
    )
    assert one.shape == other.shape and not np.array_equal(one, other)


def test_evaluate_passes_options_on_to_predict(finished, tmp_path):
    """Without --save-predictions nothing is left; what predict.py does not know is refused."""
    data, runs = finished
    base = ["--data", data, "--split", "val", "--checkpoint", runs / "segmentation/model.pt",
            "--device", "cpu", "--jobs", 1, "--json", tmp_path / "val.json"]  # fmt: skip
    small = ["--scales", 1, "--no-crf", "--amp", "off", "--workers", 0]
    run_stage(evaluate.main, *base, *small)
    assert json.loads((tmp_path / "val.json").read_text())["run"]["predict"]["crf"] is False
    assert [p.name for p in tmp_path.iterdir()] == ["val.json"]
    other = ["--out", tmp_path / "out"]  # the figures would be those of another folder
    for wrong in (
        ["--no-such-option"],
        ["--scores", runs / "cam"],
        ["--thresholds", 0.3],
        other,
        [*other, "--save-predictions", tmp_path / "kept"],
    ):
        with pytest.raises(SystemExit):
            run_stage(evaluate.main, *base, *small, *wrong)
    with pytest.raises(SystemExit):
        run_stage(evaluate.main, *base[:4], "--labels", runs / "pseudo", "--save-predictions", runs)
