"""A stage notices that an option, a list, a checkpoint or a label map before it has changed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from faults.stages import (
    STAGES,
)

from core.data.images import read_label, write_label
from core.data.scores import Scores
from core.errors import InputError
from core.run import checkpoint


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
    ("classification", LISTS.format("train"), without_last_line, r"inputs \(data \w+ -> \w+\)"),
    ("cam", ["--scales", 1], None, r"scales \[0.5, 1.0, 1.5, 2.0\] -> \[1.0\]"),
    ("cam", LISTS.format("train"), without_last_line, r"\(data \w+ -> \w+\)"),
    ("cam", MODEL.format("classification"), with_other_weight, r"checkpoint \w+ -> \w+"),
    ("affinity", ["--radius", 4], None, r"radius 5 -> 4"),
    ("affinity", "cam/train3.npz", with_other_maps, r"cams \w+ -> \w+"),
    ("pseudo", ["--threshold", 0.4], None, r"threshold 0.35 -> 0.4"),
    ("pseudo", "cam/train3.npz", with_other_maps, r"cams \w+ -> \w+"),
    ("pseudo", MODEL.format("affinity"), with_other_weight, r"affinity \w+ -> \w+"),
    ("segmentation", ["--crop", 48], None, r"crop 64 -> 48"),
    ("segmentation", "pseudo/train3.png", with_other_pixel, r"labels \w+ -> \w+"),
    ("evaluate", ["--no-crf"], None, r"crf True -> False"),
    ("evaluate", LISTS.format("val"), without_last_line, r"\(data \w+ -> \w+\)"),
    ("evaluate", MODEL.format("segmentation"), with_other_weight, r"checkpoint \w+ -> \w+"),
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


@pytest.fixture
def forgetful(inputs) -> Iterator[None]:
    """Without what the stages recorded of their own outputs: only the stage after can notice."""
    with ExitStack() as stack:
        for path in inputs.glob("*/run.json"):
            record = json.loads(path.read_text())
            record["results"] = {}
            stack.enter_context(changed(path, lambda p, r=record: p.write_text(json.dumps(r))))
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
    ("affinity", "cam/train3.npz", with_other_maps),
    ("affinity", "cam/train3.npz", Path.unlink),
    ("pseudo", MODEL.format("affinity"), with_other_weight),
    ("evaluate", MODEL.format("segmentation"), with_other_weight),
]


@pytest.mark.parametrize(("name", "what", "change"), EDITED)
def test_outputs_edited_after_the_end(inputs, tmp_path, name, what, change):
    """Also a stage that starts for the first time sees that its input is not what was made."""
    message = r"changed since its run finished \(\w+ -> \w+\).*--overwrite"
    with changed(inputs / what, change), pytest.raises(InputError, match=message):
        STAGES[name].run(inputs, tmp_path)


def test_other_ground_truth_is_scored_again(inputs, capsys):
    """Predictions do not depend on the masks, the scores do."""
    stage, mask = STAGES["evaluate"], inputs / "data/SegmentationClass/val0.png"
    stage.run(inputs, inputs)
    assert "scored before" in capsys.readouterr().out
    with changed(mask, with_other_pixel):
        stage.run(inputs, inputs)
    printed = capsys.readouterr().out
    assert "scored before" not in printed and "nothing to do" in printed
