"""scripts/settings.sh: what a recipe gives to which stage."""

import os
import subprocess
from importlib import import_module
from pathlib import Path

import pytest
from conftest import REPO, fake_python

STAGES = {
    "1_train_classification": ["--lr 0.05", "--sides 400 800", "--crop 640"],
    "3_make_affinity_labels": ["--foreground-threshold 0.35", "--background-threshold 0.1"],
    "4_train_affinity": [],
    "6_make_pseudo_labels": ["--threshold 0.25"],
    "7_train_segmentation": ["--lr 0.004", "--epochs 15"],
}


@pytest.fixture
def command(tmp_path):
    """Run a numbered script with a `python` that says its arguments; returns those."""
    env = os.environ | fake_python(tmp_path)

    def run(script: str, *more: str, **settings: str) -> list[str]:
        command = ["bash", f"scripts/{script}.sh", *more]
        return subprocess.run(
            command, cwd=REPO, env=env | settings, check=True, text=True,
            capture_output=True,
        ).stdout.splitlines()  # fmt: skip

    return run


@pytest.mark.parametrize("script", STAGES)
def test_coco(command, script):
    """The stage's parser takes the recipe's options, which VOC's does not have."""
    name, *given = command(script, RECIPE="coco")
    assert name == f"{script[2:]}.py"
    parser = import_module(script[2:]).get_args_parser()
    args = parser.parse_args(given)
    assert (str(args.data), args.split) == ("coco", "train")
    for option in STAGES[script]:
        flag, *values = option.split()
        value = getattr(args, flag[2:].replace("-", "_"))
        assert list(map(float, values)) == (value if isinstance(value, list) else [value])
    voc = command(script, RECIPE="voc")
    assert voc == command(script)
    assert set(voc).isdisjoint({"0.05", "0.35", "0.25", "0.004"})


def test_the_command_line_wins(command):
    _, *given = command("7_train_segmentation", "--epochs", "3", RECIPE="coco")
    parser = import_module("train_segmentation").get_args_parser()
    assert parser.parse_args(given).epochs == 3


def test_another_recipe(command):
    with pytest.raises(subprocess.CalledProcessError) as error:
        command("1_train_classification", RECIPE="ade")
    assert error.value.stderr == "error: RECIPE=ade: voc or coco\n"


@pytest.fixture
def data(tmp_path) -> Path:
    """A list of 25 images sorted by class; those of `val` have masks, of train all but one."""
    root = tmp_path / "data"
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "SegmentationClass").mkdir()
    names = {"train": [f"{c}{i:02}" for c in "abcde" for i in range(5)], "val": ["v1", "v2"]}
    for split, ids in names.items():
        (root / f"ImageSets/Segmentation/{split}.txt").write_text("\r\n".join(["", *ids]))
        for image_id in ids[-24:]:
            (root / f"SegmentationClass/{image_id}.png").touch()
    return root


@pytest.mark.parametrize("out", ["--out=X/cam", "--out=X/cam/", "--out X/cam/"])
def test_what_was_made_is_scored(command, data, out):
    """Whichever way --out is written; on the list that --split names."""
    words = ("2_make_cam", *out.split(), "--split", "val")
    *_, last = "\n".join(command(*words, DATA=str(data))).split("evaluate.py\n")
    _, _, _, split, _, scores, _, figures = last.splitlines()
    assert (split, scores, figures) == ("val", "X/cam", "X/cam.json")


def test_a_list_with_a_few_masks_is_not_scored(command, data):
    printed = command("2_make_cam", DATA=str(data), SPLIT="train")
    assert "evaluate.py" not in printed
    assert printed[-1].startswith("not scored: of the 25 images of train 24 have a mask")


def test_help_runs_nothing_else(command, data):
    assert command("2_make_cam", "--split", "val", "--help", DATA=str(data)) == [
        "make_cam.py", "--help"
    ]  # fmt: skip


def test_without_a_val_list_nothing_is_segmented(command, data):
    (data / "ImageSets/Segmentation/val.txt").unlink()
    (line,) = command("8_predict", DATA=str(data))
    assert line.startswith("no list to segment")


def test_a_smoke_run_takes_images_of_every_class(command, data, tmp_path):
    words = {"DATA": str(data), "RUNS": str(tmp_path / "runs"), "SPLIT": "train", "SMOKE": "1"}
    command("1_train_classification", **words)
    lists = tmp_path / "runs/smoke/data/ImageSets/Segmentation"
    taken = (lists / "train.txt").read_text().split()
    assert len(taken) == len(set(taken)) == 20 and {i[0] for i in taken} == set("abcde")
    assert (lists / "val.txt").read_text().split() == ["v1", "v2"]
