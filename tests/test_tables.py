"""tools/tables.py: which commands make a table, and what happens when one of them fails."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import train_classification
from core import steps
from core.steps import Step
from tools import tables

import pytest
from conftest import REPO, fake_python, write_data_root

# Stands for every script: notes its command; fails where the environment says so.
FAKE = """#!/usr/bin/env python
import os, sys
from pathlib import Path
line = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
with open("commands.txt", "a") as file:
    file.write(line + "\\n")
print("images: 50%|#####     | 1/2", end="\\r", file=sys.stderr)
if os.environ.get("FAIL", "nothing") in line:
    print("warning: soon", "error: no data; give some", "bye", sep="\\n", file=sys.stderr)
    sys.exit(1)
"""
SCRIPTS = [f"{step.script}.py" for step in steps.STEPS]


def options(*given: object) -> Namespace:
    """Options as `main` completes them, of a full run."""
    args = tables.get_args_parser().parse_args(list(map(str, given)))
    args.runs, args.split = Path("/runs"), "train_aug"
    args.data = args.data or Path("/data")
    return args


def commands(args: Namespace) -> list[list[str]]:
    """All commands of all rows."""
    found = []
    for row in tables.rows(args):
        for step in tables.plan(row, args):
            found += [list(map(str, command)) for command in tables.commands(step, row, args)]
    return found


def value(command: list[str], option: str) -> str:
    return command[command.index(option) + 1]


def test_tables_share_directories() -> None:
    """One row for what tables have in common, run as far as the longest of them."""
    args = options(2, 1, 3, "--seeds", 0, 1, "--backbones", "resnet50", "resnest269")
    ends = {str(row.folder): row.last for row in tables.rows(args)}
    for backbone in ("resnet50", "resnest269"):
        for seed in (0, 1):
            folder = f"/runs/{backbone}/seed{seed}"
            assert ends.pop(f"{folder}/all") == "predictions"
            assert {ends.pop(f"{folder}/{name}") for name in ("cls", "p_cls", "re")} == {"cam"}
    assert not ends
    papers = [{row.backbone for row in tables.rows(options(number))} for number in (1, 2)]
    assert papers == [{"resnet50"}, {"resnet50", "resnest50", "resnest101", "resnest269"}]


def test_table_1_differs_in_the_loss_alone() -> None:
    trainings = [c for c in commands(options(1)) if c[0] == "train_classification.py"]
    switches = [sorted(set(c) & {"--no-p-cls", "--no-re"}) for c in trainings]
    assert switches == [["--no-p-cls", "--no-re"], ["--no-re"], ["--no-p-cls"], []]
    some = tables.rows(options(1, 3, "--variants", "cls", "small", "--backbones", "resnet18"))
    assert [(row.variant, row.last) for row in some] == [
        ("cls", "predictions"), ("small", "predictions")
    ]  # fmt: skip
    command = next(iter(commands(options(1, "--variants", "small"))))
    parsed = train_classification.get_args_parser().parse_args(command[1:])
    assert parsed.p_cls and parsed.re
    assert (parsed.re_seams, parsed.re_scale) == ("drop", "relative")


@pytest.mark.parametrize("more", [[], ["--small"], ["--hr-cam", "--test", "--with", "rw=--beta 8"]])
def test_commands_parse_and_read_what_was_written(more: list[str]) -> None:
    written: set[str] = set()
    found = commands(options(1, 3, *more))
    for script, *words in found:
        parser = importlib.import_module(script[:-3].replace("/", ".")).get_args_parser()
        if script == "evaluate.py":
            assert Path(value(words, "--json")).parent in {Path(p).parent for p in written}
        for option in ("--scores", "--labels", "--checkpoint", "--predictions"):
            if option in words:
                assert value(words, option).removesuffix("/model.pt") in written
        parser.parse_args(words)
        written |= {value(words, "--out")} if "--out" in words else set()
    row = "/seed0/all/"
    names = [Path(c[-1]).name for c in found if row in c[-1] and "resnest" not in c[-1]]
    names = [name for name in names if name.endswith(".json")]
    hr_cam = ["hr_cam.json"] * ("--hr-cam" in more)
    papers = ["cam.json", *hr_cam, "rw.json", "pseudo.json", "val.json"]
    scored = {f"{step.figures}.json" for step in steps.STEPS if step.title}
    assert [name for name in names if name in papers] == papers
    assert set(names) == {*papers, *scored}  # a refinement more is scored as well
    made_of = {Path(value(c, "--scores")).name for c in found if c[0] == "make_affinity_labels.py"}
    assert made_of == ({"hr_cam"} if hr_cam else {"cam"})  # as in the released code


def test_small_data_need_no_download() -> None:
    for command in commands(options(2, "--small")):
        if command[0].startswith("train"):
            assert value(command, "--backbone") == "resnet18"
            weights = "/runs/resnet18/seed0/all/classification/model.pt"
            is_first = command[0] == "train_classification.py"
            assert value(command, "--weights") == ("none" if is_first else weights)


def test_options_of_a_step() -> None:
    args = options(3, "--with", "segmentation=--accumulate 4 --amp bf16", "--small")
    for command in commands(args):
        assert (command[-4:] == ["--accumulate", "4", "--amp", "bf16"]) == (
            command[0] == "train_segmentation.py"
        )


def test_stale_is_for_every_stage() -> None:
    for command in commands(options(3, "--stale", "redo")):
        assert ("--stale" in command) == (command[0] in SCRIPTS)


def test_a_new_refinement_is_one_line_in_the_list_of_steps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    smooth = Step("smooth", "make_smooth", "scores", (("--scores", "rw"),), "+ smoothing")
    place = [step.name for step in steps.STEPS].index("pseudo")
    pseudo = replace(steps.STEPS[place], reads=(("--scores", "smooth"),))
    rest = steps.STEPS[place + 1 :]
    monkeypatch.setattr(steps, "STEPS", (*steps.STEPS[:place], smooth, pseudo, *rest))
    for number in (1, 2, 3):
        found = [" ".join(command) for command in commands(options(number, "--small"))]
        is_there = number > 1
        assert any(c.startswith("make_smooth.py") for c in found) == is_there
        assert (
            any("--scores /runs/resnet18/seed0/all/smooth --json" in c for c in found) == is_there
        )
        labels = [c for c in found if c.startswith("make_pseudo_labels.py")]
        assert all("--scores /runs/resnet18/seed0/all/smooth" in c for c in labels)


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository, in a path with spaces, whose scripts do nothing but note their command."""
    house = tmp_path / "my house"
    for name in (*SCRIPTS, "evaluate.py", "tools/report.py", "tools/make_shapes.py"):
        (house / name).parent.mkdir(parents=True, exist_ok=True)
        (house / name).write_text(FAKE)
    monkeypatch.setattr(tables, "ROOT", house)
    return house


def run_tables(house: Path, *given: object) -> list[str]:
    """Run the tables there, on a data root and into runs with spaces: the commands."""
    log = house / "commands.txt"
    log.unlink(missing_ok=True)
    data = house / "my data"
    if not data.exists():
        write_data_root(data)
    where = ["--data", data, "--split", "train", "--runs", house / "my runs"]
    try:
        tables.main(list(map(str, [*given, *where, "--backbones", "resnet18"])))
    finally:
        lines = log.read_text().replace(f"{house}/", "").splitlines()
    return lines


def test_a_failed_row_does_not_stop_the_others(
    house: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAIL", "p_cls/cam --checkpoint")
    with pytest.raises(SystemExit) as stop:
        run_tables(house, 1)
    row = house / "my runs" / "resnet18" / "seed0" / "p_cls"
    assert stop.value.code == f"FAILED: {row}: cam: no data; give some"
    assert (row / "failed.txt").read_text() == "cam: no data; give some\n"
    done = (house / "commands.txt").read_text()
    assert "seed0/p_cls/cam --json" not in done and "seed0/all/cam --json" in done
    assert done.splitlines()[-1].startswith("report.py")
    out, err = capfd.readouterr()
    assert out.count("== row") == 4 and "50%|#####" in err and "error: no data" in err

    monkeypatch.delenv("FAIL")
    lines = run_tables(house, 1)
    assert not (row / "failed.txt").exists() and len(lines) == 4 * 3 + 1
    assert lines[-1] == "report.py my runs --out my runs/report --data my data"


@pytest.mark.parametrize("what", ["seed0/all/cam --json", "report.py"])
def test_a_failed_score_or_report_is_an_error(
    house: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setenv("FAIL", what)
    with pytest.raises(SystemExit, match="no data"):
        run_tables(house, 1)


def test_synthetic_data_come_first(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "DataRoot", lambda root: Namespace(ids=lambda split: [root, split]))
    tables.main(["2", "--small", "--runs", str(house / "runs")])
    first, second, *_ = (house / "commands.txt").read_text().splitlines()
    assert first.startswith(f"make_shapes.py --out {house / 'runs/data'} --train")
    assert second.startswith(f"train_classification.py --data {house / 'runs/data'} --split train")


@pytest.mark.parametrize(
    "given", [["--with", "cams=--scales 1"], ["--with", "cam"], ["--with", "cam='"], []]
)
def test_what_cannot_work_is_said_first(given: list[str], tmp_path: Path) -> None:
    with pytest.raises(tables.InputError):
        tables.main(["1", "--data", str(tmp_path / "none"), "--runs", str(tmp_path), *given])
    assert not any(tmp_path.iterdir())


def test_several_gpus_are_the_launchers(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []

    def popen(command: list[str], **_: object) -> None:
        started.append(command[1:])
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", popen)
    for processes in (1, 4):
        with pytest.raises(KeyboardInterrupt):
            tables.run(["make_cam.py"], processes)
    launcher = ["-m", "core.run.launch", "--processes", "4"]
    assert started == [["make_cam.py"], [*launcher, "make_cam.py"]]


@pytest.mark.parametrize(
    ("status", "stderr", "expected"),
    [
        (0, "error: not one", ""),
        (1, "a\nerror: first\rerror: second\n", "second"),
        (1, "Traceback:\n  File\nValueError: wrong\n\n", "ValueError: wrong"),
        (2, "usage: x\nmake_cam.py: error: unrecognized: --b\n", "unrecognized: --b"),
        (3, "", "exit status 3"),
        (-9, "50%|", "killed by SIGKILL (out of memory?)"),
        (-11, "", "killed by SIGSEGV"),
    ],
)  # fmt: skip
def test_reasons(status: int, stderr: str, expected: str) -> None:
    assert tables.reason(status, stderr) == expected


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        (tmp_path / "script.py").write_text(f"import os, subprocess, sys, time\n{text}\n")
        return tmp_path / "script.py"

    return write


def test_what_a_killed_stage_leaves_behind_is_not_awaited(script: Callable[[str], Path]) -> None:
    sleeper = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(30)'])"
    path = script(f"print({sleeper}.pid, flush=True); os.kill(os.getpid(), 9)")
    began = time.monotonic()
    assert tables.run([path]).startswith("killed by SIGKILL")
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_ends_the_stage(script: Callable[[str], Path], number: int) -> None:
    path = script("print(os.getpid(), flush=True); time.sleep(60)")
    program = "import sys; from core.run.main import run_main; from tools import tables; "
    program += "run_main(lambda: tables.run(sys.argv[1:]))"
    command = [sys.executable, "-c", program, str(path)]
    process = subprocess.Popen(
        command, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    stage = int(process.stdout.readline())
    process.send_signal(number)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 128 + number and "Traceback" not in stderr
    with pytest.raises(ProcessLookupError):
        os.kill(stage, 0)


def test_shell_scripts_pass_the_environment_on(tmp_path: Path) -> None:
    """With a `python` that notes its arguments, one a line; nothing is installed."""
    fake = 'case $1 in -c) echo "$PREFIX";; -m) cat >/dev/null;; *) printf "%s\\n" "$@";; esac'
    base = fake_python(tmp_path / "bin", fake) | {"PREFIX": str(tmp_path)}
    given = {"DATA": "my data", "RUNS": "my runs", "SEEDS": "0 1", "GPUS": "2", "TEST": "1"}
    given |= {"BACKBONES": "resnet18 resnet50"}
    for number, name in ((1, "losses"), (2, "pseudo_labels"), (3, "segmentation")):
        command = ["bash", str(REPO / f"scripts/table{number}_{name}.sh"), "--with", "rw=--beta 8"]
        for environment in ({"SMALL": "0"}, given, {"SMALL": "1"}):
            done = subprocess.run(
                command, env=base | environment, capture_output=True, text=True, check=True
            )
            script, *words = done.stdout.splitlines()
            args = tables.get_args_parser().parse_args(words)
            assert script == "tools/tables.py" and args.tables == [number]
            assert args.more == ["rw=--beta 8"]
            assert args.small == (environment.get("SMALL") == "1")
            if environment is given:
                assert args.test == (number == 3)
                assert (args.data, args.runs) == (Path("my data"), Path("my runs"))
                assert args.seeds == [0, 1] and args.gpus == 2
                assert args.backbones == ["resnet18", "resnet50"]


def test_photographs_are_prepared_once_and_run_with_one_recipe(tmp_path: Path) -> None:
    """scripts/real_small.sh, with a `python` that notes its arguments, one a line."""
    env = fake_python(tmp_path) | {"SEEDS": "0 1", "WEIGHTS": "my weights.pth"}
    data = tmp_path / "my data"

    def run() -> tuple[list[str], list[list[str]]]:
        command = ["bash", str(REPO / "scripts/real_small.sh"), "--with", "cam=--scales 1"]
        env["DATA"] = str(data)
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        first, *rest = done.stdout.split("tools/tables.py\n")
        return first.splitlines(), [words.splitlines() for words in rest]

    prepared, trained = run()
    assert prepared[0] == "tools/prepare_animals.py" and prepared[-1] == str(data)
    data.mkdir()
    (data / "classes.txt").touch()
    assert run() == ([], trained)
    for words, table in zip(trained, (1, 3), strict=True):
        args = tables.get_args_parser().parse_args(words)
        assert args.tables == [table] and {"cls", "small"} <= set(args.variants)
        assert args.seeds == [0, 1] and args.data == data
        args.runs = Path("/runs")
        for command in commands(args):
            script = importlib.import_module(command[0].removesuffix(".py").replace("/", "."))
            parsed = script.get_args_parser().parse_args(command[1:])
            if command[0].startswith("train_"):
                assert parsed.weights == str(REPO / "my weights.pth")
                assert parsed.crop == 192 and parsed.batch_size == 16
