"""scripts/settings.sh: what a recipe gives to which stage."""

import os
import subprocess
from importlib import import_module

import pytest
from conftest import REPO

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
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    python.chmod(0o755)

    def run(script: str, *more: str, **settings: str) -> list[str]:
        path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        command = ["bash", f"scripts/{script}.sh", *more]
        return subprocess.run(
            command, cwd=REPO, env=os.environ | path | settings, check=True, text=True,
            capture_output=True,
        ).stdout.splitlines()  # fmt: skip

    return run


@pytest.mark.parametrize("script", STAGES)
def test_coco(command, script):
    """The stage's parser takes the recipe's options, and what is given by hand wins."""
    name, *given = command(script, RECIPE="coco")
    assert name == f"{script[2:]}.py"
    parser = import_module(script[2:]).get_args_parser()
    args = parser.parse_args(given)
    assert (str(args.data), args.split) == ("coco", "train")
    for option in STAGES[script]:
        flag, *values = option.split()
        value = getattr(args, flag[2:].replace("-", "_"))
        assert list(map(float, values)) == (value if isinstance(value, list) else [value])
    *_, voc = command(script, RECIPE="voc"), command(script)
    assert set(" ".join(voc).split()).isdisjoint({"0.05", "0.35", "0.25", "0.004"})


def test_the_command_line_wins(command):
    _, *given = command("7_train_segmentation", "--epochs", "3", RECIPE="coco")
    parser = import_module("train_segmentation").get_args_parser()
    assert parser.parse_args(given).epochs == 3


def test_another_recipe(command):
    with pytest.raises(subprocess.CalledProcessError) as error:
        command("1_train_classification", RECIPE="ade")
    assert error.value.stderr == "error: RECIPE=ade: voc or coco\n"
