"""The edges of a run: nonsense options, foreign files, outputs that cannot take what is written."""

from __future__ import annotations

import argparse
import importlib
import json
import re
from pathlib import Path

import evaluate
import train_affinity
from core.data.images import write_label
from core.errors import InputError
from core.run import artefacts, checkpoint, record

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


def test_contradictions_are_refused_before_anything_is_written(inputs, tmp_path, capsys):
    labels = ["--foreground-threshold", 0.1, "--background-threshold", 0.4]
    for name, options, message in [
        ("affinity_labels", labels, "is under --background-threshold"),
        ("classification", ["--sides", 80, 48], "the smaller one first"),
        ("affinity", ["--radius", 12], "holds no pair within --radius 12"),
        ("cam", ["--out", ""], "argument --out: an empty path"),
    ]:
        with pytest.raises((InputError, SystemExit)) as error:
            STAGES[name].run(inputs, tmp_path, *options)
        assert message in str(error.value) + capsys.readouterr().err
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


def test_a_run_goes_on_with_other_ways_of_the_same(inputs, tmp_path):
    """More processes, --verify, the spelling of `auto`: no other run."""
    args = train_affinity.get_args_parser().parse_args(
        STAGES["affinity"].arguments(inputs, tmp_path, "--amp", "auto")
    )
    given = {"data": "a", "images": "b"}

    def identity(inputs: dict[str, str], resolved: dict[str, object], **settings: object) -> str:
        args.settings = args.settings | settings
        run = record.Run("t", args, torch.device("cpu"), "model", ["x"], inputs, resolved)
        with run:
            return run.identity

    first = identity(given, {"amp": "off", "bn_batch": 4})
    assert (
        identity(given | {"contents": "c", "images": "d"}, {"amp": "off", "bn_batch": 2}) == first
    )
    assert identity(given, {"amp": "bf16", "bn_batch": 4}) != first
    assert identity(given | {"data": "x"}, {"amp": "off"}) != first
    assert identity(given, {"amp": "off"}, amp="off") == first
    assert identity(given, {"amp": "off"}, seed=7) != first


def test_another_number_of_processes_is_noted_and_kept(inputs, tmp_path, capsys):
    """Their BatchNorm saw other batches: what goes on does not hide what began."""
    run = tmp_path / "classification/run.json"
    for began, expected in ((1, "1, then 4"), ("1, then 4", "1, then 4"), (4, 4)):
        STAGES["classification"].run(inputs, tmp_path)
        made = json.loads(run.read_text())
        made["resolved"]["bn_batch"] = began
        run.write_text(json.dumps(made | {"finished": False}))
        capsys.readouterr()
        STAGES["classification"].run(inputs, tmp_path)
        assert json.loads(run.read_text())["resolved"]["bn_batch"] == expected
        notes = [s for s in said(capsys.readouterr().err) if "BatchNorm over 1 images before" in s]
        assert len(notes) == (began == 1)


def test_other_versions_are_noted(inputs, tmp_path, capsys, monkeypatch):
    """Between stages and between start and resume, one line each."""
    now = artefacts.versions()
    monkeypatch.setattr(artefacts, "versions", lambda: now | {"torch": "9.9"})
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
        with pytest.raises(InputError, match=rf"{path}(/model.pt)?: no such"):
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


def test_labels_of_another_kind_are_noted(inputs, tmp_path, capsys):
    """A segmentation on confident labels alone, a boundary network on labels of every pixel."""
    for name, labels, usual in [
        ("segmentation", "affinity_labels", "make_pseudo_labels"),
        ("affinity", "pseudo", "make_affinity_labels"),
    ]:
        own = STAGES[name].options.split("--labels {i}/")[1].split()[0]
        for each, count in [(labels, 1), (own, 0)]:
            STAGES[name].run(inputs, tmp_path / each, "--labels", inputs / each, "--epochs", 1)
            assert capsys.readouterr().err.count(f"; usual are labels of {usual}") == count


def test_labels_of_images_that_their_run_does_not_list(inputs):
    """A run tells by its list of files which images it is of."""
    with pytest.raises(InputError, match="made of other images: 'val0' is not among them"):
        artefacts.read(inputs / "pseudo", "labels", None, ["val0"])
    write_label(inputs / "pseudo/val0.png", torch.zeros(4, 4).numpy())
    try:
        with pytest.raises(InputError, match="made of other images"):
            artefacts.read(inputs / "pseudo", "labels", None, ["val0"])
    finally:
        (inputs / "pseudo/val0.png").unlink()
