"""A stage notices that an option, a list, a checkpoint or a label map before it has changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import evaluate
from core.data.images import read_label, write_label
from core.data.scores import Scores
from core.errors import InputError
from core.run import artefacts, checkpoint
from core.run import main as ending

import pytest
from conftest import run_stage
from faults.stages import STAGES


def without_last_line(path: Path) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def with_other_weight(path: Path) -> None:
    state = checkpoint.load(path)
    next(iter(state["weights"].values())).mul_(2)
    checkpoint.save(path, state)


def with_other_maps(path: Path) -> None:
    file = Scores.load(path, 3)
    file.cam = file.cam[:, ::-1]
    file.save(path)


def with_other_pixel(path: Path) -> None:
    label = read_label(path, 4)
    label[0, 0] = 255 - label[0, 0]
    write_label(path, label)


LISTS, MODEL = "data/ImageSets/Segmentation/{}.txt", "{}/model.pt"
# stage, changed option or file, how it is changed, part of the message
STALE = [
    ("classification", ["--alpha", 2], None, r"settings \(alpha 4.0 -> 2.0\)"),
    (
        "classification",
        LISTS.format("train"),
        without_last_line,
        r"inputs \(data \w+ -> \w+, images",
    ),
    ("cam", ["--scales", 1], None, r"scales \[0.5, 1.0, 1.5, 2.0\] -> \[1.0\]"),
    ("cam", LISTS.format("train"), without_last_line, r"\(data \w+ -> \w+, images"),
    ("cam", MODEL.format("classification"), with_other_weight, r"checkpoint \w+ -> \w+"),
    ("affinity_labels", ["--background-threshold", 0.2], None, r"background_threshold 0.1 -> 0.2"),
    ("affinity_labels", "cam/train3.npz", with_other_maps, r"scores \w+ -> \w+"),
    ("affinity", ["--radius", 4], None, r"radius 5 -> 4"),
    ("affinity", "affinity_labels/train3.png", with_other_pixel, r"labels \w+ -> \w+"),
    ("rw", ["--beta", 4], None, r"beta 10.0 -> 4.0"),
    ("rw", "cam/train3.npz", with_other_maps, r"scores \w+ -> \w+"),
    ("rw", MODEL.format("affinity"), with_other_weight, r"checkpoint \w+ -> \w+"),
    ("pseudo", ["--threshold", 0.4], None, r"threshold 0.35 -> 0.4"),
    ("pseudo", "rw/train3.npz", with_other_maps, r"scores \w+ -> \w+"),
    ("segmentation", ["--crop", 48], None, r"crop 64 -> 48"),
    ("segmentation", "pseudo/train3.png", with_other_pixel, r"labels \w+ -> \w+"),
    ("predictions", ["--no-crf"], None, r"crf True -> False"),
    ("predictions", LISTS.format("val"), without_last_line, r"\(data \w+ -> \w+, images"),
    ("predictions", MODEL.format("segmentation"), with_other_weight, r"checkpoint \w+ -> \w+"),
]


@contextmanager
def changed(path: Path, change: Callable[[Path], None]) -> Iterator[None]:
    """A file, changed for a while."""
    before = path.read_bytes()
    change(path)
    try:
        yield
    finally:
        path.write_bytes(before)


def without_digest(read: Callable) -> Callable:
    """`artefacts.read` of a directory whose record has the digest of what is there now."""

    def patched(folder: Path, *args: object) -> dict:
        names = [line.split("  ")[1] for line in (folder / "SHA256SUMS").read_text().splitlines()]
        sums = changed(folder / "SHA256SUMS", lambda path: None)  # put back after the reading
        with sums, json_with(folder / "run.json", digest=artefacts.seal(folder, names)):
            return read(folder, *args)

    return patched


@contextmanager
def json_with(path: Path, **values: object) -> Iterator[None]:
    """A JSON file with other values for a while."""
    made = json.loads(path.read_text()) | values
    with changed(path, lambda p: p.write_text(json.dumps(made))):
        yield


@pytest.fixture
def forgetful(monkeypatch) -> Iterator[None]:
    """Inputs may change: what their stages recorded of them is not compared."""
    monkeypatch.setattr(artefacts, "read", without_digest(artefacts.read))
    yield


@pytest.mark.parametrize(("name", "what", "change", "message"), STALE)
def test_stale_results_are_noticed(inputs, forgetful, name, what, change, message):
    """The stage after a change refuses to go on from what it made before, and says why."""
    stage = STAGES[name]
    if change is None:
        with pytest.raises(InputError, match=f"made with other .*{message}"):
            stage.run(inputs, inputs, *what)
        return
    with changed(inputs / what, change), pytest.raises(InputError, match=message):
        stage.run(inputs, inputs)
    stage.run(inputs, inputs)  # as before: nothing to do


EDITED = [
    ("cam", MODEL.format("classification"), with_other_weight),
    ("affinity_labels", "cam/train3.npz", with_other_maps),
    ("affinity_labels", "cam/train3.npz", Path.unlink),
    ("affinity", "affinity_labels/train3.png", with_other_pixel),
    ("rw", MODEL.format("affinity"), with_other_weight),
    ("pseudo", "rw/train3.npz", with_other_maps),
    ("segmentation", "pseudo/train3.png", with_other_pixel),
    ("segmentation", "pseudo/train3.png", Path.unlink),
    ("predictions", MODEL.format("segmentation"), with_other_weight),
]


@pytest.mark.parametrize(("name", "what", "change"), EDITED)
def test_outputs_edited_after_the_end(inputs, tmp_path, name, what, change):
    """Also a stage that starts for the first time sees that its input is not what was made."""
    verb = "deleted" if change == Path.unlink else "changed"
    message = rf"{what}: {verb} since its run finished; restore it or start \w+ again with --over"
    with changed(inputs / what, change), pytest.raises(InputError, match=message):
        STAGES[name].run(inputs, tmp_path)


def test_other_ground_truth_is_scored_again(inputs, tmp_path, capsys):
    """Predictions do not depend on the masks, the scores do."""
    command = ["--data", inputs / "data", "--split", "val", "--labels", inputs / "predictions",
               "--json", tmp_path / "val.json", "--device", "cpu", "--jobs", 1]  # fmt: skip
    for _ in range(2):
        run_stage(evaluate.main, *command)
    assert "scored before" in capsys.readouterr().out
    with changed(inputs / "data/SegmentationClass/val0.png", with_other_pixel):
        run_stage(evaluate.main, *command)
    assert "scored before" not in capsys.readouterr().out


def test_an_option_that_an_older_record_lacks_had_its_default(inputs):
    """A new option does not make last week's training stale; another value of it does."""
    path, stage = inputs / "classification/run.json", STAGES["classification"]
    settings = json.loads(path.read_text())["settings"]
    del settings["masking"]
    with json_with(path, settings=settings):
        stage.run(inputs, inputs)
        with pytest.raises(InputError, match="masking labels -> none"):
            stage.run(inputs, inputs, "--masking", "none")


def test_auto_is_what_it_stands_for(inputs, tmp_path):
    """Spelt out it is the same; an unfinished run does not go on in another precision."""
    stage, path = STAGES["classification"], inputs / "classification/run.json"
    stage.run(inputs, inputs, "--amp", "off")  # the tests' own
    settings = json.loads(path.read_text())["settings"] | {"amp": "auto"}
    halfway = {"finished": False, "settings": settings, "resolved": {"amp": "bf16"}}
    with json_with(path, **halfway), pytest.raises(InputError, match="amp bf16 -> off"):
        stage.run(inputs, inputs)
    with json_with(path, settings=settings, resolved={"amp": "off"}):
        stage.run(inputs, inputs)


def test_without_a_crf_its_backend_says_nothing(inputs, tmp_path):
    """Older records say "auto", and of no CRF that it was none."""
    stage = STAGES["predictions"]
    stage.run(inputs, tmp_path, "--no-crf")
    path = tmp_path / "predictions/run.json"
    settings = json.loads(path.read_text())["settings"] | {"crf_backend": "auto"}
    with json_with(path, settings=settings, resolved={"crf_backend": "no CRF"}):
        stage.run(inputs, tmp_path, "--no-crf")
    other = json_with(path, settings=settings, resolved={"crf_backend": "pydensecrf"})
    with other, pytest.raises(InputError, match="crf_backend pydensecrf -> torch"):
        stage.run(inputs, tmp_path, "--no-crf")


def test_a_run_keeps_the_model_that_it_starts_from(inputs):
    stage, model = STAGES["classification"], inputs / "classification/model.pt"
    for option in ("--init", "--weights"):
        for given in (model, model.parent):
            with pytest.raises(InputError, match=r"model\.pt is read, and lies in --out"):
                stage.run(inputs, inputs, option, given, "--overwrite")
    assert model.exists()


def test_what_is_said_of_going_on(inputs, tmp_path):
    """With --overwrite the same command deletes; of a temporary folder nothing stays."""
    stage = STAGES["predictions"]
    stage.run(inputs, tmp_path)
    assert ending.again() == "the same command goes on from here"
    stage.run(inputs, tmp_path, "--overwrite")
    assert ending.again() == "the same command without --overwrite goes on from here"
    words = ["--data", inputs / "data", "--split", "val", "--device", "cpu", "--no-crf"]
    model = inputs / "segmentation/model.pt"
    run_stage(evaluate.main, *words, "--checkpoint", model, "--workers", 0, "--scales", 1)
    assert ending.again() == "start it again"


def test_a_checkpoint_is_what_it_holds_wherever_it_lies(inputs, tmp_path):
    copy = tmp_path / "copied.pt"
    shutil.copy(inputs / "classification/model.pt", copy)
    STAGES["cam"].run(inputs, inputs, "--checkpoint", copy)  # nothing to do


@pytest.mark.parametrize("names", [["square", "disc", "bar"], ["disc", "square", "bar", "ring"]])
def test_other_class_names_are_refused_by_every_stage(inputs, tmp_path, names):
    """Reordered or extended between two stages: the first difference is named."""
    classes = inputs / "data/classes.txt"
    first = "number 1 was 'disc', in the data set it is 'square'"
    message = first if len(names) == 3 else r"other classes \(3, the data set has 4\)"
    with changed(classes, lambda p: p.write_text("\n".join(names) + "\n")):
        for name, stage in STAGES.items():
            if name != "classification":  # which reads nobody's results
                with pytest.raises(InputError, match=message):
                    stage.run(inputs, tmp_path)
    assert not list(tmp_path.rglob("run.json"))
