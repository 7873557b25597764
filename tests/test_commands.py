"""Every command printed in scripts/, the README and docs/ parses, and every script has --help."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from core import steps
from core.data.datasets import DataRoot

import pytest
from conftest import REPO, fake_python, write_data_root

PYTHON = sorted([*REPO.glob("*.py"), *REPO.glob("tools/*.py")])
SCRIPTS = [p for p in PYTHON if p.read_text().startswith("#!")]
SOURCES = sorted([*REPO.glob("scripts/*.sh"), *REPO.glob("*.md"), *REPO.glob("docs/*.md"),
                  *REPO.glob("data/*.md"), *SCRIPTS])  # fmt: skip


def commands(path: Path) -> list[tuple[str, list[str]]]:
    """(script, arguments) of the stage and tool commands in a shell script, page or docstring."""
    text = path.read_text().replace("\\\\\n", " ").replace("\\\n", " ")
    if path.suffix == ".py":
        text = text.split('"""')[1]
    found = []
    for line in text.splitlines():
        match = re.match(r"\s*(?:[A-Z_]+=\S+ )*(?:python|stage|run_once|torchrun .*?) "
                         r"((?:tools/)?\w+\.py)(?= |$)(.*)", line)  # fmt: skip
        if match and (REPO / match[1]).exists():
            arguments = re.sub(r"\s[#>|].*$", "", match[2])
            arguments = re.sub(r'"\$\{?(\w+\[@\]|@)\}?"', "", arguments)  # arrays of more options
            arguments = re.sub(r"\$\{\w+:\+(.*?)\}", r"\1", arguments)  # ${SET:+options}
            arguments = re.sub(r"\$\{?\w+[^\s\"}/]*\}?", "0", arguments)
            found.append((match[1], shlex.split(arguments)))
    return found


ALL = [(source, *command) for source in SOURCES for command in commands(source)]


def parser_of(script: str):
    return importlib.import_module(script[:-3].replace("/", ".")).get_args_parser()


@pytest.mark.parametrize(
    ("source", "script", "arguments"), ALL, ids=[f"{s.name}:{c}" for s, c, _ in ALL]
)
def test_command_parses(source, script, arguments, capsys):
    choices = {"--backbone": "resnet50", "--backbones": "resnet50", "--gpus": "4"}
    for name, value in choices.items():
        if name in arguments and arguments[arguments.index(name) + 1] == "0":
            arguments[arguments.index(name) + 1] = value
    try:
        parser_of(script).parse_args(arguments)
    except SystemExit:
        pytest.fail(f"{source.name}: {script} {shlex.join(arguments)}\n{capsys.readouterr().err}")


def test_the_search_for_commands_finds_them():
    assert len(ALL) > 20
    assert {c for s, c, _ in ALL if s.parent.name == "scripts"} >= {
        "train_classification.py", "make_cam.py", "train_affinity.py", "make_pseudo_labels.py",
        "train_segmentation.py", "evaluate.py",
    }  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_help_opens_with_a_command_to_paste(script):
    name = str(script.relative_to(REPO))
    text = parser_of(name).format_help()
    assert f"python {name}" in text
    assert any(command == name for command, _ in commands(script))


@pytest.mark.parametrize("script", sorted(REPO.glob("scripts/*.s*")), ids=lambda p: p.name)
def test_shell_scripts_are_sound(script):
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text()
    if text.startswith("#!"):
        assert "set -euo pipefail" in text


def test_scripts_find_core_from_any_directory(tmp_path):
    """Each is read as Python starts it, its own directory first on the path and this one not."""
    program = """
import runpy, sys
path = [p for p in sys.path if p]
for script in sys.argv[1:]:
    for name in [m for m in sys.modules if m.partition(".")[0] in ("core", "tools")]:
        del sys.modules[name]
    sys.path[:] = [script.rpartition("/")[0], *path]
    try:
        runpy.run_path(script, run_name="read")
    except ImportError as error:
        print(script, error)
"""
    run = subprocess.run(
        [sys.executable, "-c", program, *map(str, SCRIPTS)],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == ""


def test_smoke_runs_every_stage_small_on_a_few_of_the_users_images(tmp_path):
    """With a `python` that notes its arguments, one a line; the data root stays as it is."""
    data = write_data_root(tmp_path / "my data", n_train=30)
    before = sorted(data.rglob("*"))
    env = fake_python(tmp_path / "bin", 'printf "%s\\n" "$@" END')
    env |= {"SMOKE": "1", "DATA": str(data), "RUNS": str(tmp_path / "runs"), "SPLIT": "train"}
    env["WEIGHTS"] = "a file.pth"
    command = ["bash", str(REPO / "scripts/pipeline.sh")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    small = tmp_path / "runs/smoke/data"
    stages = {}
    for words in done.stdout.split("END\n")[:-1]:
        script, *rest = words.splitlines()
        args = parser_of(script).parse_args(rest)
        assert args.data == small
        stages.setdefault(script, args)
    scripts = {f"{step.script}.py" for step in steps.STEPS}
    assert stages.keys() == scripts | {"evaluate.py", "tools/report.py"}
    for script in ("train_classification.py", "train_affinity.py", "train_segmentation.py"):
        args = stages[script]
        assert (args.epochs, args.batch_size, args.weights) == (2, 4, "a file.pth")
    root = DataRoot(small)
    assert len(root.ids("train")) == 20 and len(root.ids("val")) == 3
    assert root.classes == DataRoot(data).classes and root.image_labels(root.ids("train"))
    assert sorted(data.rglob("*")) == before
    subprocess.run(command, env=env, capture_output=True, check=True)  # again, over what is there


@pytest.mark.parametrize(
    ("script", "made", "figures"),
    [
        ("2_make_cam", "cam", "cam"),
        ("5_make_random_walk", "rw", "rw"),
        ("6_make_pseudo_labels", "pseudo", "pseudo"),
        ("8_predict", "predictions", "val"),
    ],
)
def test_what_a_numbered_script_makes_elsewhere_is_scored_there(tmp_path, script, made, figures):
    data = write_data_root(tmp_path / "data")
    env = fake_python(tmp_path / "bin", 'printf "%s\\n" "$@" END')
    env |= {"DATA": str(data), "RUNS": str(tmp_path / "runs"), "SPLIT": "train"}

    def scored(*more: str) -> tuple[Path, Path]:
        command = ["bash", str(REPO / f"scripts/{script}.sh"), *more]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        words = done.stdout.split("END\n")[1].splitlines()
        args = parser_of(words[0]).parse_args(words[1:])
        return args.scores or args.labels, args.json

    runs, other = tmp_path / "runs", tmp_path / "an other"
    assert scored() == (runs / made, runs / f"{figures}.json")
    wanted = (other, tmp_path / "an other.json")
    assert scored("--verify", "--out", str(other)) == wanted
    assert scored("--out", "first", "--out", str(other), "--verify") == wanted


@pytest.mark.parametrize("script", ["pipeline", "demo", "photograph"])
def test_scripts_without_options_refuse_them(script):
    command = ["bash", str(REPO / f"scripts/{script}.sh")]
    run = subprocess.run([*command, "--epochs", "1"], capture_output=True, text=True)
    assert run.returncode == 2 and run.stdout == ""
    assert run.stderr.startswith(f"error: --epochs: {script}.sh takes no options")
    run = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True)
    assert "Machine: " in run.stdout and "set -euo" not in run.stdout


@pytest.mark.parametrize("number", ["4_train_affinity", "7_train_segmentation"])
def test_without_weights_later_trainings_start_from_the_classifier(tmp_path, number):
    env = fake_python(tmp_path) | {"RUNS": "a b", "SMOKE": "0"}
    for weights, expected in (("none", "a b/classification/model.pt"), ("imagenet", "imagenet")):
        command, given = ["bash", str(REPO / f"scripts/{number}.sh")], env | {"WEIGHTS": weights}
        words = subprocess.check_output(command, env=given, text=True).splitlines()
        assert words[words.index("--weights") + 1] == expected
