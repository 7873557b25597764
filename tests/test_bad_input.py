"""Bad input ends in one line that names the file, status 1, and nothing half-written."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import evaluate
import make_affinity_labels
import make_cam
import train_affinity
import train_classification
import train_segmentation
from core.errors import InputError
from core.method.networks import Classifier
from core.run import artefacts, checkpoint

import numpy as np
import pytest
import torch
from conftest import REPO, SMALL, run_stage, write_cams, write_data_root
from PIL import Image

CPU = ["--device", "cpu", "--amp", "off", "--workers", 0]


def classify(root: Path, *more: object) -> None:
    run_stage(train_classification.main, "--data", root, "--split", "train",
              "--out", root.parent / "out", *SMALL, *more)  # fmt: skip


def edit_list(root: Path, text: str) -> None:
    (root / "ImageSets/Segmentation/train.txt").write_text(text)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:700])


DAMAGE = {
    "no JPEGImages": (lambda r: shutil.rmtree(r / "JPEGImages"), "JPEGImages"),
    "no list": (lambda r: (r / "ImageSets/Segmentation/train.txt").unlink(), r"train\.txt"),
    "empty split": (lambda r: edit_list(r, "\n \n"), r"train\.txt: the split is empty"),
    "one image": (lambda r: edit_list(r, "train0\n"), "has 1 image"),
    "id without image": (lambda r: (r / "JPEGImages/train3.jpg").unlink(), r"train3\.jpg"),
    "id twice": (lambda r: edit_list(r, "train0\ntrain1\ntrain0\n"), "'train0' is listed twice"),
    "id climbs out": (lambda r: edit_list(r, "../../x\ntrain1\n"), r"train\.txt: id"),
    "truncated JPEG": (lambda r: truncate(r / "JPEGImages/train3.jpg"), r"train3\.jpg"),
    "no labels": (lambda r: (r / "labels.txt").write_text("train0 disc\n"), "train1"),
    "no class": (
        lambda r: (r / "labels.txt").write_text("".join(f"train{i}\n" for i in range(8))),
        "no class for any",
    ),
    "unknown class": (lambda r: (r / "labels.txt").write_text("train0 dsic\n"), "'dsic'"),
    "class twice": (lambda r: (r / "classes.txt").write_text("a\na\n"), r"classes\.txt"),
    "class climbs out": (lambda r: (r / "classes.txt").write_text("../a\n"), r"classes\.txt"),
    "not UTF-8": (lambda r: (r / "labels.txt").write_bytes(b"\xff\xfe\x00"), r"labels\.txt"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_data(data_root, name):
    damage, message = DAMAGE[name]
    damage(data_root)
    with pytest.raises(InputError, match=message) as caught:
        classify(data_root)
    assert "\n" not in str(caught.value)
    assert not (data_root.parent / "out" / "model.pt").exists()


def test_error_of_a_loader_process_is_one_line(data_root):
    truncate(data_root / "JPEGImages/train3.jpg")
    with pytest.raises(InputError, match=r"train3\.jpg: truncated") as caught:
        classify(data_root, "--workers", 1)
    assert "\n" not in str(caught.value)


XML = {
    "<annotation><object><name>dog</annotation>": "damaged XML",
    '<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>': "DTD",
    "<annotation></annotation>": "no class for any image",
    "<html xmlns='http://x.org/a'><body/></html>": "of <html>, no VOC annotation; restore it",
    "<annotation><object></object></annotation>": "an object without a name",
    "<annotation><object><name>unicorn</name></object></annotation>": "'unicorn'",
}


@pytest.mark.parametrize("text", XML)
def test_damaged_annotations(data_root, text):
    (data_root / "labels.txt").unlink()
    (data_root / "classes.txt").unlink()
    (data_root / "Annotations").mkdir()
    for i in range(8):
        (data_root / f"Annotations/train{i}.xml").write_text(text)
    with pytest.raises(InputError, match=XML[text]):
        classify(data_root)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--crop", 48), "--crop 48 is not divisible by 16 x --grid 2"),
        (("--crop", 64, "--grid", 3), "16 x --grid 3"),
        (("--batch-size", 9), "larger than the 8 images"),
        (("--accumulate", 3), "not divisible"),
        (("--sides", 80, 48), "the smaller one first"),
        (("--weights", "nowhere.pt"), r"nowhere\.pt: no such checkpoint"),
        (("--device", "cuda"), "no GPU"),
        (("--data", "nowhere"), "nowhere: no such directory"),
    ],
)
def test_impossible_options(data_root, options, message):
    if options[0] == "--device" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(InputError, match=message):
        classify(data_root, *options)


def test_nothing_to_synchronise(data_root):
    words = ["--data", data_root, "--split", "train", "--sync-bn"]
    words += ["--labels", data_root / "SegmentationClass"]
    for stage in (train_affinity, train_segmentation):
        with pytest.raises(InputError, match="BatchNorms of this network are frozen"):
            run_stage(stage.main, *words, "--out", data_root.parent / "out", *SMALL)


def test_other_settings_are_refused_with_the_difference(data_root):
    classify(data_root)
    with pytest.raises(InputError, match=r"lr 0\.005 -> 0\.02.*--overwrite"):
        classify(data_root, "--lr", 0.02)
    labels = data_root / "labels.txt"
    labels.write_text(labels.read_text().replace("train0 disc", "train0 disc bar"))
    with pytest.raises(InputError, match=r"other inputs \(data \w+ -> \w+\)"):
        classify(data_root)
    classify(data_root, "--overwrite")
    settings = json.loads((data_root.parent / "out/run.json").read_text())["settings"]
    assert settings["lr"] == 0.005


def test_a_foreign_directory_is_left_alone(data_root):
    out = data_root.parent / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("precious")
    for more in ((), ("--overwrite",)):
        with pytest.raises(InputError, match="holds files but no run"):
            classify(data_root, *more)
    assert (out / "thesis.tex").read_text() == "precious"


def test_checkpoints_of_other_classes_or_backbones(data_root, tmp_path):
    path = tmp_path / "model.pt"
    cam = ["--data", data_root, "--split", "train", "--checkpoint", path, "--out", tmp_path / "cam"]
    checkpoint.save_model(path, Classifier("resnet18", 2), ["disc", "bar"])
    with pytest.raises(
        InputError, match=r"model\.pt: made for other classes \(2, the data set has 3\)"
    ):
        run_stage(make_cam.main, *cam, *CPU)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match=r"model\.pt: truncated or not a checkpoint"):
        run_stage(make_cam.main, *cam, *CPU)
    with pytest.raises(InputError, match=r"model\.pt: truncated or not a checkpoint"):
        classify(data_root, "--weights", path)
    checkpoint.save_model(path, Classifier("resnet34", 3), ["disc", "square", "bar"])
    with pytest.raises(InputError, match="holds a resnet34, not a resnet18"):
        classify(data_root, "--weights", path)


def label(root: Path, *more: object) -> None:
    run_stage(make_affinity_labels.main, "--data", root, "--split", "train", "--scores",
              root.parent / "cams", "--out", root.parent / "labels", "--device", "cpu",
              "--jobs", 1, *more)  # fmt: skip


def test_scores_missing_or_made_for_something_else(data_root):
    with pytest.raises(InputError, match=r"cams/run\.json: no such file"):
        label(data_root)
    cams = data_root.parent / "cams"
    write_cams(data_root, cams)
    made = json.loads((cams / "run.json").read_text())
    wider = np.zeros((48, 80, 3), np.uint8)
    Image.fromarray(wider).save(data_root / "JPEGImages/train5.jpg")
    with pytest.raises(InputError, match=r"train5\.npz: made from an image of 64x48, it is 80x48"):
        label(data_root)
    (cams / "train5.npz").unlink()
    with pytest.raises(InputError, match=r"train5\.npz: deleted since its run finished"):
        label(data_root, "--overwrite")
    made["digest"] = artefacts.seal(cams, [path.name for path in cams.glob("*.npz")])
    (cams / "run.json").write_text(json.dumps(made))
    with pytest.raises(InputError, match=r"cams: made of other images: 'train5' is not among them"):
        label(data_root, "--overwrite")
    (cams / "run.json").write_text(json.dumps(made | {"finished": False}))
    with pytest.raises(InputError, match="cams: not finished; start make_cam again"):
        label(data_root, "--overwrite")
    labels = data_root.parent / "labels"
    with pytest.raises(InputError, match=r"labels: holds labels \(made by make_affinity_labels\)"):
        run_stage(evaluate.main, "--data", data_root, "--scores", labels, "--device", "cpu")


def test_confident_means_more_than_background(data_root):
    with pytest.raises(InputError, match=r"--foreground-threshold 0\.1 is under"):
        label(data_root, "--foreground-threshold", 0.1, "--background-threshold", 0.4)


def test_crop_without_pairs(data_root):
    with pytest.raises(InputError, match="holds no pair within --radius 10"):
        run_stage(train_affinity.main, "--data", data_root, "--split", "train", "--labels",
                  data_root / "SegmentationClass", "--out", data_root.parent / "out",
                  "--radius", 10, *SMALL)  # fmt: skip


def segment(root: Path, *more: object) -> None:
    run_stage(train_segmentation.main, "--data", root, "--split", "train",
              "--labels", root / "SegmentationClass", "--out", root.parent / "out",
              *SMALL, *more)  # fmt: skip


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (np.zeros((48, 60), np.uint8), "label map of 60x48 pixels, image of 64x48"),
        (np.full((48, 64), 4, np.uint8), "label 4 is outside 0 to 3"),
        (np.zeros((48, 64, 3), np.uint8), "not an 8-bit palette or grey PNG but RGB"),
    ],
)
def test_label_maps_that_do_not_fit(data_root, label, message):
    Image.fromarray(label).save(data_root / "SegmentationClass/train2.png")
    with pytest.raises(InputError, match=rf"train2\.png: {message}"):
        segment(data_root)


def test_evaluation_without_ground_truth(tmp_path):
    root = write_data_root(tmp_path / "data", masks=False)
    with pytest.raises(InputError, match="no ground truth for split 'train'"):
        run_stage(evaluate.main, "--data", root, "--labels", root / "SegmentationClass",
                  "--device", "cpu")  # fmt: skip


def test_the_process_says_one_line_and_fails(data_root, tmp_path):
    """The whole program: status 1, one line on stderr, no traceback."""
    (data_root / "labels.txt").write_text("train0 dsic\n")
    command = [sys.executable, REPO / "train_classification.py", "--data", data_root,
               "--split", "train", "--out", tmp_path / "out", *SMALL]  # fmt: skip
    result = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert "'dsic'" in result.stderr and not (tmp_path / "out").exists()
