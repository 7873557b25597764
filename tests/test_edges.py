"""The edges of a run: nonsense options, foreign files, outputs that cannot take what is written."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import evaluate
from core.data.datasets import DataRoot
from core.data.images import write_label
from core.errors import InputError
from core.run import checkpoint, record
from core.run.main import AGAIN

import pytest
import torch
from conftest import REPO, run_stage
from faults.stages import STAGES, said

SCRIPTS = sorted(p.stem for p in REPO.glob("*.py")) + sorted(
    f"tools.{p.stem}" for p in REPO.glob("tools/*.py") if "def get_args_parser" in p.read_text()
)
NONSENSE = ("0", "-1", "1e12", "1000000000000", "nan", "inf", "-inf", "abc", "1.5", "")


def numbers(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """The options that take numbers."""

    def takes(action: argparse.Action, text: str) -> bool:
        try:
            return isinstance(action.type(text), int | float)
        except (argparse.ArgumentTypeError, ValueError):
            return False

    typed = [a for a in parser._actions if a.option_strings and a.type and not a.choices]
    return [a for a in typed if any(takes(a, text) for text in ("1", "16", "0.5"))]


@pytest.mark.parametrize("script", [*SCRIPTS, "core.run.launch"])
def test_numbers_are_bounded(script, capsys):
    """Every numeric option takes what makes sense and refuses the rest in one line, status 2."""
    parser = importlib.import_module(script).get_args_parser()
    required = [a for a in parser._actions if a.required]
    for action in required:
        action.required = False
    for action in numbers(parser):
        option, count = action.option_strings[0], action.nargs if type(action.nargs) is int else 1
        for text in NONSENSE:
            try:
                values = vars(parser.parse_known_args([option, *[text] * count])[0])[action.dest]
            except SystemExit as end:
                line = capsys.readouterr().err
                assert end.code == 2 and line.count("\n") == 1 and option in line, (option, text)
                continue
            for value in values if isinstance(values, list) else [values]:
                assert 0 <= value <= 1e10, (option, text)


def test_contradictions_are_refused_before_anything_is_written(inputs, tmp_path):
    labels = ["--foreground-threshold", 0.1, "--background-threshold", 0.4]
    for name, options, message in [
        ("affinity_labels", labels, "is under --background-threshold"),
        ("classification", ["--sides", 80, 48], "the smaller one first"),
        ("affinity", ["--radius", 12], "holds no pair within --radius 12"),
        ("cam", ["--out", ""], "argument --out: an empty path"),
    ]:
        with pytest.raises((InputError, SystemExit)) as error:
            STAGES[name].run(inputs, tmp_path, *options)
        assert message in str(error.value) or error.value.code == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "out"),
    [
        ("pseudo", "rw"), ("pseudo", "rw/below"), ("rw", "cam/x/y"), ("segmentation", "pseudo/x"),
        ("cam", "data"), ("cam", "data/JPEGImages"), ("cam", "data/SegmentationClass/cam"),
    ],
)  # fmt: skip
def test_outputs_are_kept_out_of_inputs(inputs, name, out):
    before = sorted(inputs.rglob("*"))
    with pytest.raises(InputError, match=f"--out .*{out} is in .*, which is read; choose another"):
        STAGES[name].run(inputs, inputs, "--out", inputs / out)
    assert sorted(inputs.rglob("*")) == before


def test_overwriting_removes_what_the_run_wrote_alone(inputs, tmp_path):
    """A user's pictures, models and notes beside the results stay."""
    for name, own in [
        ("pseudo", ["figure.png", "notes.txt"]),
        ("classification", ["best_epoch.pt", "curve.png"]),
        ("cam", ["other.npz"]),
    ]:
        stage = STAGES[name]
        stage.run(inputs, tmp_path)
        made = {p.name for p in (tmp_path / name).iterdir()}
        for each in own:
            (tmp_path / name / each).write_bytes(b"mine")
        stage.run(inputs, tmp_path)  # and they do not count as damage
        stage.run(inputs, tmp_path, "--overwrite")
        assert {p.name for p in (tmp_path / name).iterdir()} == made | set(own)
        assert all((tmp_path / name / each).read_bytes() == b"mine" for each in own)


@pytest.mark.parametrize("content", ["[1, 2]", "{}", '{"stage": "mine"}', "not JSON", "\xff"])
def test_a_run_json_of_others_is_not_touched(inputs, tmp_path, content):
    out = tmp_path / "cam"
    out.mkdir()
    (out / "run.json").write_bytes(content.encode("latin-1"))
    (out / "train0.npz").write_bytes(b"mine")
    for more in ([], ["--overwrite"]):
        with pytest.raises(InputError, match="choose another --out"):
            STAGES["cam"].run(inputs, tmp_path, *more)
    assert (out / "train0.npz").read_bytes() == b"mine"
    assert (out / "run.json").read_bytes() == content.encode("latin-1")


@pytest.mark.parametrize("damage", ["delete", "flip"])
@pytest.mark.parametrize("name", STAGES)
def test_a_finished_directory_is_verified(inputs, tmp_path, name, damage):
    """Started again it says that a result is gone or damaged, and which; --overwrite mends it."""
    stage = STAGES[name]
    stage.run(inputs, tmp_path)
    before = {p.name: p.read_bytes() for p in (tmp_path / name).iterdir()}
    results = sorted((tmp_path / name).glob("*[0-9].*")) or [tmp_path / name / "model.pt"]
    path = results[-1]
    if damage == "delete":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"x")
    verb = "deleted" if damage == "delete" else "changed"
    message = f"{path.name}: {verb} since its run finished; .*--overwrite"
    with pytest.raises(InputError, match=message):
        stage.run(inputs, tmp_path)
    stage.run(inputs, tmp_path, "--overwrite")
    after = {p.name: p.read_bytes() for p in (tmp_path / name).iterdir()}
    assert {k: v for k, v in after.items() if k != "run.json"} == {
        k: v for k, v in before.items() if k != "run.json"
    }


def test_a_checkpoint_on_the_way_belongs_to_its_run(inputs, tmp_path):
    """The last.pt of another seed is refused, whatever its form."""
    stage = STAGES["affinity"]
    stage.run(inputs, tmp_path, "--seed", 1)
    run, last = tmp_path / "affinity/run.json", tmp_path / "affinity/last.pt"
    foreign = last.read_bytes()
    stage.run(inputs, tmp_path, "--overwrite")
    made = json.loads(run.read_text()) | {"finished": False}
    run.write_text(json.dumps(made))
    own = last.read_bytes()
    last.write_bytes(foreign)
    with pytest.raises(InputError, match=r"last\.pt: the last\.pt of another run; remove it"):
        stage.run(inputs, tmp_path)
    last.write_bytes(own)
    for key, value in [("step", -3), ("step", 2.5), ("step", "a"), ("log_bytes", -1)]:
        checkpoint.save(last, checkpoint.load(last) | {key: value})
        with pytest.raises(InputError, match=r"last\.pt: not the last\.pt of this training"):
            stage.run(inputs, tmp_path)
        last.write_bytes(own)


def test_other_versions_are_noted(inputs, tmp_path, capsys, monkeypatch):
    """Between stages and between start and resume, one line each."""
    now = record.versions()
    monkeypatch.setattr(record, "versions", lambda: now | {"torch": "9.9"})
    STAGES["pseudo"].run(inputs, tmp_path)
    line = f"note: {inputs / 'rw'}: made with another version (torch {now['torch']} -> 9.9)"
    assert said(capsys.readouterr().err).count(line) == 1
    run = tmp_path / "pseudo/run.json"
    made = json.loads(run.read_text()) | {"finished": False, "git": "0123"}
    run.write_text(json.dumps(made))
    STAGES["pseudo"].run(inputs, tmp_path)
    notes = [s for s in said(capsys.readouterr().err) if "begun" in s]
    assert len(notes) == 1 and "this project 0123 -> " in notes[0]


@pytest.mark.parametrize("what", ["weights", "statistics"])
@pytest.mark.parametrize("name", ["classification", "affinity", "segmentation"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_network_with_nan_or_inf_is_loaded(inputs, tmp_path, name, what, value):
    state = checkpoint.load(inputs / name / "model.pt")
    ending = "running_var" if what == "statistics" else "weight"
    key = [k for k in state["weights"] if k.endswith(ending)][-1]
    state["weights"][key].view(-1)[0] = value
    checkpoint.save(tmp_path / "model.pt", state)
    reader = {"classification": "cam", "affinity": "rw", "segmentation": "predictions"}[name]
    with pytest.raises(InputError, match=rf"model\.pt: '{re.escape(key)}' holds NaN or inf"):
        STAGES[reader].run(inputs, tmp_path, "--checkpoint", tmp_path / "model.pt")
    network = torch.nn.Linear(2, 2)
    network.weight.data[0, 0] = value
    network.arguments = {}
    with pytest.raises(InputError, match="'weight' holds NaN or inf"):
        checkpoint.save_model(tmp_path / "new.pt", network, ["a"])
    assert not (tmp_path / "new.pt").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arguments": {"weights": "imagenet"}}, "cannot be built"),
        ({"arguments": {"backbone": "resnet18", "weights": "/etc/passwd"}}, "cannot be built"),
        ({"arguments": {"backbone": ["resnet18"]}}, "not a model.pt of this project"),
        ({"classes": ["x" * 100_000, "b", "c"]}, "cannot be part of a file name"),
        ({"classes": ["a\0", "b", "c"]}, "cannot be part of a file name"),
        ({"classes": [1, 2, 3]}, "cannot be part of a file name"),
        ({"classes": []}, "holds 0 classes"),
    ],
)
def test_hostile_checkpoints(inputs, tmp_path, changes, message):
    path = tmp_path / "model.pt"
    checkpoint.save(path, checkpoint.load(inputs / "segmentation/model.pt") | changes)
    with pytest.raises(InputError, match=message) as error:
        STAGES["predictions"].run(inputs, tmp_path, "--checkpoint", path)
    assert len(str(error.value)) < 1000


def test_devices_are_no_checkpoints(inputs, tmp_path):
    for path in ("/dev/zero", "/dev/null", str(tmp_path)):
        with pytest.raises(InputError, match=rf"{path}: no such"):
            STAGES["cam"].run(inputs, tmp_path, "--checkpoint", path)


# ---- evaluate.py's files


def scoring(inputs: Path, *more: object) -> list[str]:
    command = ["--data", inputs / "data", "--split", "val", "--labels", inputs / "predictions",
               "--device", "cpu", "--jobs", 1, *more]  # fmt: skip
    return [str(each) for each in command]


@pytest.mark.parametrize("what", ["cam/run.json", "[1]", '{"a": 1}', "text"])
def test_a_foreign_json_is_not_overwritten(inputs, tmp_path, what):
    path = inputs / what if what.endswith(".json") else tmp_path / "mine.json"
    if not path.exists():
        path.write_text(what)
    before = path.read_bytes()
    for more in ([], ["--overwrite"]):
        with pytest.raises(InputError, match="choose another name"):
            run_stage(evaluate.main, *scoring(inputs, "--json", path, *more))
    assert path.read_bytes() == before


def test_what_is_asked_for_must_be_there(inputs, tmp_path):
    figures = tmp_path / "figures.json"
    for more in (["--masks", "TYPO"], ["--masks", "TYPO", "--json", figures]):
        with pytest.raises(InputError, match="TYPO: no ground truth"):
            run_stage(evaluate.main, *scoring(inputs, *more))
    model = ["--checkpoint", inputs / "segmentation/model.pt", "--scales", 1, "--no-crf"]
    model += ["--save-predictions", tmp_path / "out", "--masks", "TYPO", "--json", figures]
    command = [c for c in scoring(inputs) if c not in ("--labels", str(inputs / "predictions"))]
    with pytest.raises(InputError, match="TYPO: no ground truth"):
        run_stage(evaluate.main, *command, *model)
    assert not figures.exists() and not (tmp_path / "out").exists()
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="File exists"):
        run_stage(evaluate.main, *scoring(inputs, "--json", tmp_path / "file/figures.json"))


# ---- streams, signals, the machine: as processes


def start(script: str, *arguments: object, **popen: object) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | popen.pop("env", {})
    defaults = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "start_new_session": True}
    command = [sys.executable, str(REPO / script), *map(str, arguments)]
    return subprocess.Popen(command, text=True, env=environment, **defaults | popen)


def test_streams_that_take_nothing(inputs, tmp_path):
    """`| head`, a full disk, a closed or dead stream: the figures are in the file all the same."""
    data = DataRoot(inputs / "data")
    ends = {}
    with open("/dev/full", "w") as full:
        dead = start("evaluate.py", *scoring(inputs, "--json", tmp_path / "dead.json"))
        dead.stdout.close()
        dead.stderr.close()
        ends["dead"] = dead.wait(timeout=60)
        gone = start("evaluate.py", *scoring(inputs, "--json", tmp_path / "full.json"), stdout=full)
        ends["full"], stderr = gone.wait(timeout=60), gone.stderr.read()
        closed = start(
            "evaluate.py", *scoring(inputs, "--json", tmp_path / "closed.json"),
            stdout=None, stderr=None, preexec_fn=lambda: os.closerange(0, 3),
        )  # fmt: skip
        ends["closed"] = closed.wait(timeout=60)
    assert ends == {"dead": 0, "full": 1, "closed": 0}
    assert said(stderr)[-1] == "error: standard output: No space left on device"
    figures = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ends]
    assert all(list(each["iou"]) == ["background", *data.classes] for each in figures)


def test_a_class_that_the_terminal_cannot_write(tmp_path, data_root):
    classes = DataRoot(data_root).classes
    for file in ("classes.txt", "labels.txt"):
        text = (data_root / file).read_text().replace(classes[0], "größe")
        (data_root / file).write_text(text, encoding="utf-8")
    command = ["--data", data_root, "--split", "val", "--labels", data_root / "SegmentationClass"]
    more = ["--json", tmp_path / "a.json", "--device", "cpu"]
    ascii_only = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    process = start("evaluate.py", *command, *more, env=ascii_only)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert "gr\\xf6\\xdfe" in stdout
    assert "größe" in json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["iou"]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR1"])
def test_a_signal_to_the_whole_job(inputs, tmp_path, name):
    """Also where the loaders die first: the status and the words are of the signal."""
    stage = STAGES["cam"]
    arguments = stage.arguments(inputs, tmp_path, "--workers", 2, "--scales", *[2] * 30)
    process = start("make_cam.py", *arguments)
    until = time.monotonic() + 60
    while not (tmp_path / "cam/run.json").exists() and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.5)
    os.killpg(process.pid, getattr(signal, name))
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + getattr(signal, name)
    assert said(stderr) == [f"stopped by {name}; {AGAIN}"]


@pytest.mark.parametrize("seconds", [0.3, 1.0, 2.0])
def test_ctrl_c_at_any_moment(inputs, tmp_path, seconds):
    """During the imports too, and three in a row."""
    process = start("make_cam.py", *STAGES["cam"].arguments(inputs, tmp_path, "--scales", *[2] * 9))
    time.sleep(seconds)
    for _ in range(3):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.02)
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode in (130, -2)  # -2: before Python is there
    lines = said(stderr)
    assert len(lines) <= 1 and "".join(lines).startswith("interrupted"), lines


def test_a_path_that_is_not_utf_8(tmp_path, data_root):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/gr\xf6\xdfe"))
    data_root.rename(folder)
    labels, out = folder / "SegmentationClass", tmp_path / "a.json"
    process = start("evaluate.py", "--data", folder, "--labels", labels, "--json", out, "--split",
                    "val", "--device", "cpu")  # fmt: skip
    assert process.communicate(timeout=60)[1].count("error") == 0
    assert process.returncode == 0
    assert str(folder) in json.loads(out.read_text())["run"]["argv"]


def test_a_temporary_folder_with_a_long_name(inputs, tmp_path):
    long = tmp_path / ("x" * 120)
    long.mkdir()
    arguments = STAGES["pseudo"].arguments(inputs, tmp_path, "--jobs", 2)
    process = start("make_pseudo_labels.py", *arguments, env={"TMPDIR": str(long)})
    stderr = process.communicate(timeout=60)[1]
    if process.returncode:  # newer Pythons choose another folder by themselves
        assert said(stderr)[-1].startswith("error: TMPDIR is too long")


def test_labels_of_two_kinds_of_run(inputs):
    """A run tells by its list of files which images it is of."""
    with pytest.raises(InputError, match="made of other images: 'val0' is not among them"):
        record.read(inputs / "pseudo", "labels", None, ["val0"])
    write_label(inputs / "pseudo/val0.png", torch.zeros(4, 4).numpy())
    try:
        with pytest.raises(InputError, match="made of other images"):
            record.read(inputs / "pseudo", "labels", None, ["val0"])
    finally:
        (inputs / "pseudo/val0.png").unlink()
