"""Data sets in which every pixel belongs to a class: `background: none` in classes.txt."""

import json

import evaluate
import make_pseudo_labels
import predict
import train_segmentation
from core.data import images
from core.data.datasets import DataRoot
from core.errors import InputError
from core.method.networks import DeepLabV3Plus
from tools import make_shapes

import numpy as np
import pytest
import torch
from conftest import SMALL, run_stage
from faults.stages import STAGES


def labels_in(folder) -> set[int]:
    """The labels of all label maps in a folder."""
    return {int(c) for p in folder.glob("*.png") for c in np.unique(images.read_label(p, 255))}


@pytest.fixture(scope="module")
def patches(tmp_path_factory):
    """A data root of patches that fill the images, and a run of every stage on it."""
    root = tmp_path_factory.mktemp("patches")
    options = ["--out", root / "data", "--train", 8, "--val", 3, "--size", 64, "--no-background"]
    make_shapes.main(make_shapes.get_args_parser().parse_args([*map(str, options)]))
    for name, stage in STAGES.items():
        stage.run(root, root, *(["--scales", 1] if name == "cam" else []))
    return root


def test_the_set_has_no_background(patches):
    data = DataRoot(patches / "data")
    assert not data.background and data.classes == list(make_shapes.CLASSES)
    assert labels_in(patches / "data/SegmentationClass") == {1, 2, 3, 4, 5}


def test_no_stage_makes_background(patches):
    assert not labels_in(patches / "affinity_labels") & {0}
    for folder in ("pseudo", "predictions"):
        assert not labels_in(patches / folder) & {0, 255}


def test_a_pixel_is_the_best_of_its_images_classes(patches, tmp_path):
    """Also where every score is under the background score that other sets have."""
    command = ["--data", patches / "data", "--split", "train", "--scores", patches / "cam"]
    more = ["--out", tmp_path / "a", "--threshold", 0.99, "--no-crf", "--device", "cpu"]
    run_stage(make_pseudo_labels.main, *command, *more)
    data = DataRoot(patches / "data")
    for image_id, classes in data.image_labels(data.ids("train")).items():
        label = images.read_label(tmp_path / "a" / f"{image_id}.png", data.n_labels)
        assert set(np.unique(label).tolist()) <= set(classes)
    assert "threshold" in json.loads((tmp_path / "a/run.json").read_text())["settings"]


def test_there_is_nothing_to_balance(patches, tmp_path):
    command = ["--data", patches / "data", "--split", "train", "--labels", patches / "pseudo"]
    with pytest.raises(InputError, match=r"--balanced: .* has no background to balance"):
        run_stage(train_segmentation.main, *command, *SMALL, "--out", tmp_path, "--balanced")


def score(patches, out, *what) -> dict:
    command = ["--data", patches / "data", "--device", "cpu", "--json", out, *what]
    run_stage(evaluate.main, *command)
    return json.loads(out.read_text())


def test_scores_leave_the_background_out(patches, tmp_path):
    truth = patches / "data/SegmentationClass"
    perfect = score(patches, tmp_path / "a.json", "--labels", truth)
    assert perfect["miou"] == 100 and list(perfect["iou"]) == list(make_shapes.CLASSES)
    cams = score(patches, tmp_path / "b.json", "--scores", patches / "cam")
    assert cams["threshold"] is None and cams["sweep"] == []
    # The same, from label maps without a dense CRF.
    command = ["--data", patches / "data", "--split", "train", "--scores", patches / "cam"]
    run_stage(make_pseudo_labels.main, *command, "--out", tmp_path / "c", "--no-crf", "--device",
              "cpu")  # fmt: skip
    labels = score(patches, tmp_path / "c.json", "--labels", tmp_path / "c")
    assert labels["iou"] == cams["iou"]


def test_a_classifier_that_predicts(patches, tmp_path):
    command = [
        "--checkpoint",
        patches / "classification/model.pt",
        "--scales",
        1,
        "--device",
        "cpu",
    ]
    run_stage(predict.main, *command, "--data", patches / "data", "--out", tmp_path / "data")
    picture = patches / "data/JPEGImages/val_00000.jpg"
    run_stage(predict.main, *command, picture, "--out", tmp_path / "own")  # as model.pt knows
    assert not labels_in(tmp_path / "data") & {0} and not labels_in(tmp_path / "own") & {0}
    same = [(tmp_path / each / "val_00000.png").read_bytes() for each in ("data", "own")]
    assert same[0] == same[1]
    settings = json.loads((tmp_path / "own/run.json").read_text())["settings"]
    assert settings["threshold"] == "none"


def test_background_that_is_ruled_out():
    """Its probability is 0 whatever the picture, and a step leaves it so."""
    torch.manual_seed(0)
    network = DeepLabV3Plus("resnet18", 4)
    network.rule_out_background()
    optimizer = torch.optim.SGD(network.parameters(), 0.1, 0.9, weight_decay=1e-4)
    for _ in range(2):
        probs = network(torch.randn(2, 3, 64, 64)).softmax(1)
        assert probs[:, 0].max() == 0
        (-probs[:, 1].log().mean()).backward()
        optimizer.step()


def test_what_contradicts(patches, tmp_path, data_root):
    classes = data_root / "classes.txt"
    classes.write_text("Background: None\n" + classes.read_text())
    mask = data_root / "SegmentationClass/train0.png"
    command = ["--data", data_root, "--split", "train", "--device", "cpu"]
    with pytest.raises(InputError, match=r"train0.png: holds label 0, the background, yet"):
        run_stage(evaluate.main, *command, "--labels", mask.parent)
    with pytest.raises(InputError, match=r"holds label 0.*count the classes from 1"):
        run_stage(train_segmentation.main, *command, "--labels", mask.parent, "--out",
                  tmp_path / "out", *SMALL)  # fmt: skip
    labels = data_root / "labels.txt"
    labels.write_text(labels.read_text().replace("train3 disc", "train3"))
    with pytest.raises(InputError, match=r"labels.txt: no class for 'train3', yet classes.txt"):
        DataRoot(data_root).image_labels(["train0", "train3"])
