"""What stages say at their start and end, and the health of label maps: figures without masks."""

from __future__ import annotations

import json
import shlex

import make_affinity_labels
import make_pseudo_labels
import predict
import train_affinity
import train_segmentation
from core.data import health, images
from core.data.datasets import DataRoot
from core.data.scores import Scores
from tools import report

import numpy as np
import pytest
from conftest import run_stage, write_cams
from PIL import Image

CLASSES = ["cat", "dog"]


@pytest.fixture
def maps(tmp_path):
    """Writes label maps given as rows of numbers; returns their folder."""

    def write(**rows):
        for name, row in rows.items():
            images.write_label(tmp_path / f"{name}.png", np.array([row], np.uint8))
        return tmp_path

    return write


def test_health_counts_what_labels_and_maps_say(maps):
    folder = maps(a=[0, 0, 1, 255], b=[0, 0, 0, 0], c=[2, 2, 2, 2], d=[0, 0, 0, 0])
    labels = {"a": [1, 2], "b": [2], "c": [2], "d": []}
    found = health.measure(folder, list(labels), CLASSES, labels)
    assert found == {
        "images": 4,
        "empty": 1,  # b: of d nothing is wanted
        "pixels": {"background": 10 / 16, "cat": 1 / 16, "dog": 4 / 16, "ignored": 1 / 16},
        "shown": {"cat": [1, 1], "dog": [1, 3]},
    }
    unknown = health.measure(folder, list(labels), CLASSES, None)
    assert unknown["empty"] == 2 and "shown" not in unknown


@pytest.mark.parametrize(
    ("rows", "labels", "told"),
    [
        ({"a": [0, 1], "b": [0, 2]}, {"a": [1], "b": [2]}, []),
        (
            {"a": [0, 0], "b": [0, 1]},
            {"a": [1], "b": [1]},
            ["1 of 2 label maps show no class", "1 of the images' 2 labelled classes"],
        ),
        ({"a": [0, 1], "b": [0, 1]}, {"a": [1], "b": [1, 2]}, ["no label map shows dog"]),
        (
            {"a": [0, 1], "b": [0, 1], "c": [0, 2], "d": [0, 1]},
            {"a": [1, 2], "b": [1, 2], "c": [2, 1], "d": [1]},
            ["4 of the images' 7 labelled classes"],
        ),
        ({"a": [1] * 10, "b": [1] * 10}, {"a": [1], "b": [1]}, ["100% of the pixels are cat"]),
        ({"a": [255] * 39 + [1]}, {"a": [1]}, ["98% of the pixels are ignored"]),
        ({"a": [0] * 39 + [1]}, {"a": [1]}, []),  # small objects are no fault
        ({"a": [0] * 99 + [1]}, {"a": [1]}, ["99% of the pixels are background"]),
        ({"a": [0], "b": [1]}, {"a": [], "b": [1]}, []),  # a negative is empty rightly
    ],
)
def test_warnings_name_what_is_amiss(maps, rows, labels, told):
    lines = health.warnings(health.measure(maps(**rows), list(rows), CLASSES, labels))
    assert len(lines) == len(told)
    assert all(line.startswith(start) for line, start in zip(lines, told, strict=True))


@pytest.fixture
def labelled(data_root, tmp_path, capsys):
    """Runs make_pseudo_labels in a run folder; returns what it said."""
    (tmp_path / "run").mkdir()
    write_cams(data_root, tmp_path / "run/cam")
    capsys.readouterr()

    def run(*more):
        command = ("--data", data_root, "--split", "train", "--scores", tmp_path / "run/cam")
        command += ("--device", "cpu", "--workers", 0, "--jobs", 1, "--no-crf")
        run_stage(make_pseudo_labels.main, *command, "--out", tmp_path / "run/pseudo", *more)
        return capsys.readouterr()

    return run


def test_empty_class_maps_are_counted(tmp_path):
    """Of an image without classes there is nothing to count; a tenth is no reason to warn."""
    cams = np.zeros((2, 3, 4), np.float16)
    cams[0, 1, 1] = 0.5
    Scores(np.uint8([1, 2]), cams, (9, 14)).save(tmp_path / "a.npz")
    Scores(np.zeros(0, np.uint8), cams[:0], (9, 14)).save(tmp_path / "b.npz")
    found = health.measure_scores(tmp_path, ["a", "b"], CLASSES)
    assert found == {"images": 2, "maps": 2, "empty": 1}
    assert health.warnings(found) == ["1 of 2 class maps are empty"]
    assert health.warnings(found | {"maps": 10}) == []


def test_a_stage_says_what_it_has_made_and_what_is_next(labelled, data_root, tmp_path):
    first, second, *rest = labelled("--threshold", 0.3).out.splitlines()
    out = tmp_path / "run/pseudo"
    assert first == f"make_pseudo_labels: 8 images, 3 classes (disc, square, bar) -> {out}"
    assert second.strip().startswith("no CRF on")
    assert rest[-2].startswith(f"{out}: 8 label maps in ") and rest[-2].endswith(" s")
    _, script, *words = shlex.split(rest[-1].removeprefix("  next: "))
    assert script == "train_segmentation.py"
    args = train_segmentation.get_args_parser().parse_args(words)
    assert (args.data, args.split, args.labels) == (data_root, "train", out)
    assert args.out == tmp_path / "run/segmentation"
    assert labelled("--threshold", 0.3).out.splitlines() == [
        f"{out}: already there, made with these settings; nothing to do"
    ]


def test_what_is_there_already_is_told(labelled, tmp_path):
    labelled("--threshold", 0.3)
    record = json.loads((tmp_path / "run/pseudo/run.json").read_text())
    (tmp_path / "run/pseudo/run.json").write_text(json.dumps(record | {"finished": False}))
    (tmp_path / "run/pseudo/train0.png").unlink()
    assert "pseudo, 7 there already" in labelled("--threshold", 0.3).out


@pytest.mark.parametrize("weights", ["my file.pth", "none"])
def test_the_next_training_shares_the_classifiers_options(
    labelled, data_root, tmp_path, capsys, weights
):
    settings = {"backbone": "resnet18", "crop": 64, "sides": [48, 96], "batch_size": 32}
    (tmp_path / "run/classification").mkdir()
    record = {"settings": settings, "holds": "model", "arguments": {"weights": weights}}
    (tmp_path / "run/classification/run.json").write_text(json.dumps(record))
    out = tmp_path / "run/affinity_labels"
    command = ("--data", data_root, "--split", "train", "--scores", tmp_path / "run/cam")
    more = ("--device", "cpu", "--workers", 0, "--jobs", 1, "--crf-iterations", 1)
    run_stage(make_affinity_labels.main, *command, *more, "--out", out)
    _, script, *words = shlex.split(capsys.readouterr().out.splitlines()[-1].split("next: ")[1])
    args = train_affinity.get_args_parser().parse_args(words)
    assert script == "train_affinity.py" and args.labels == out
    assert (args.backbone, args.crop, args.sides) == ("resnet18", 64, [48, 96])
    classifier = tmp_path / "run/classification/model.pt"  # the best features where none were given
    assert args.weights == (str(classifier) if weights == "none" else weights)
    assert "--batch-size" not in words  # the recipe's


def test_empty_labels_are_told_by_every_stage_that_meets_them(
    labelled, data_root, tmp_path, capsys
):
    """Nobody goes on without having been told that nothing was found in most images."""
    ids = DataRoot(data_root).ids("train")
    told = labelled("--threshold", 1).err
    expected = f"warning: {tmp_path / 'run/pseudo'}: {len(ids)} of {len(ids)} label maps show no"
    assert expected in told
    record = json.loads((tmp_path / "run/pseudo/run.json").read_text())
    assert record["results"]["health"]["empty"] == len(ids)
    for image_id in ids[1:]:  # one with a class, or the training refuses all
        assert not np.array(Image.open(tmp_path / f"run/pseudo/{image_id}.png")).any()
    assert expected in labelled("--threshold", 1).err  # asked for again
    run_stage(report.main, tmp_path / "run", "--data", data_root, "--out", tmp_path / "report")
    for name in ("index.html", "report.md"):
        assert "label maps show no class at all" in (tmp_path / "report" / name).read_text()


def test_pictures_without_labels_are_looked_at_too(inputs, tmp_path, capsys):
    pictures = sorted((inputs / "data/JPEGImages").glob("val*.jpg"))
    command = ("--checkpoint", inputs / "classification", "--device", "cpu", "--workers", 0)
    more = ("--scales", 1, "--no-crf", "--threshold", 1, "--out", tmp_path / "out")
    run_stage(predict.main, *pictures, *command, *more)
    n = len(pictures)
    assert f"{n} of {n} label maps show no class at all" in capsys.readouterr().err
