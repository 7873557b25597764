"""A made-up COCO of 30 images with all its traps through every stage, to figures of 81 labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import evaluate
from core.data import images
from core.data.datasets import DataRoot
from tools import coco

import made_up_coco
import numpy as np
import pytest
from conftest import run_stage
from faults.stages import STAGES
from made_up_coco import CATEGORIES, Objects, box, crowd, image_id, number_of

SIZE = (64, 80)  # (H, W)
COUNTS = {"train": 22, "val": 8}
WITHOUT = {"train5", "train20", "val6"}  # images without objects
pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # pycocotools'


def an_object(rng: np.random.Generator, category: int, kind: int) -> dict[str, Any]:
    """A box, a crowd with a hole, two parts and a line, or a triangle over the image's edge."""
    y, x = (int(rng.integers(2, side // 2)) for side in SIZE)
    height, width = (int(rng.integers(8, side // 2 - 4)) for side in SIZE)
    entry: dict[str, Any] = {"category_id": category, "area": height * width, "iscrowd": 0}
    if kind == 0:
        return entry | {"segmentation": box(x, y, width + 0.5, height + 0.25)}
    if kind == 1:
        inside = np.zeros(SIZE, bool)
        inside[y : y + height, x : x + width] = True
        inside[y + 2 : y + 5, x + 2 : x + 5] = False
        return entry | {"segmentation": crowd(inside), "iscrowd": 1}
    if kind == 2:
        parts = [*box(x, y, width, 3), [1.0, 1.0, 2.0, 2.0], *box(x, y + 4, width, 4)]
        return entry | {"segmentation": parts, "area": 7 * width}
    return entry | {"segmentation": [[x, y, SIZE[1] + 9, y + 5, x + 3, y + height]]}


def thirty() -> Objects:
    """One to four objects an image; person, as in COCO, in most, and the last classes."""
    rng = np.random.default_rng(7)
    found: Objects = {}
    place = 0
    for split, count in COUNTS.items():
        for i in range(count):
            name, wanted = f"{split}{i}", int(rng.integers(1, 5))
            found[name] = []
            for kind in range(0 if name in WITHOUT else wanted):
                category = 1 if kind == 1 else [*CATEGORIES][-1 - place]
                found[name].append(an_object(rng, category, (kind + i) % 4))
                place += kind != 1
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data root `data` with --all-images, and a run of every stage beside it."""
    pytest.importorskip("pycocotools.mask")
    root = tmp_path_factory.mktemp("coco")
    made_up_coco.write(root, thirty(), SIZE)
    made_up_coco.prepare(root, "--train-masks", "--all-images", out=root / "data")
    for name, stage in STAGES.items():
        stage.run(root, root, *(["--scales", 1] if name == "cam" else []))
    return root


def test_masks_are_pycocotools_decoding(runs: Path) -> None:
    from pycocotools.coco import COCO

    data, found = DataRoot(runs / "data"), set[int]()
    for split, count in COUNTS.items():
        api = COCO(str(runs / f"instances_{split}2014.json"))
        ids = data.ids(split)
        assert len(ids) == count
        for name in ids:
            expected = made_up_coco.expected_mask(api, int(name[-12:]), SIZE)
            label = images.read_label(data.mask_path(name), data.n_labels, SIZE)
            np.testing.assert_array_equal(label, expected)
            found |= set(np.unique(label).tolist())
    assert len(found) > 40 and found >= {0, 1, 80}


def test_every_stage_knows_81_labels_and_the_negatives(runs: Path) -> None:
    data = DataRoot(runs / "data")
    for name, stage in STAGES.items():
        made = json.loads((runs / stage.folders[0] / "run.json").read_text())
        assert made["finished"] and made["classes"] == list(CATEGORIES.values()), name
    labels = data.image_labels(data.ids("train"))
    for i in (5, 20):
        name = image_id("train", number_of("train", i))
        assert labels[name] == []
        for folder in ("affinity_labels", "pseudo"):
            assert not images.read_label(runs / folder / f"{name}.png", 81, SIZE).any()
    for name, classes in labels.items():
        allowed = {0, 255, *classes}
        label = images.read_label(runs / "pseudo" / f"{name}.png", 81, SIZE)
        assert set(np.unique(label).tolist()) <= allowed
    assert len(list((runs / "predictions").glob("*.png"))) == COUNTS["val"]


def test_the_rule_and_digest_stand_beside_the_figures(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "figures.json"
    given = ["--data", runs / "data", "--split", "val", "--labels", runs / "predictions"]
    run_stage(evaluate.main, *given, "--json", report)
    truth = json.loads(report.read_text())["ground_truth"]
    assert truth["masks"] == coco.RULE
    assert coco.RULE in capsys.readouterr().out
