"""What the stage scripts do with one image, against what must come out of a clear case."""

from __future__ import annotations

import json
from pathlib import Path

import make_random_walk
from core import recipe
from core.data.scores import Scores, upsample
from core.errors import InputError
from core.run import precision
from make_affinity_labels import Labelling as AffinityLabelling
from make_pseudo_labels import Labelling as PseudoLabelling
from make_random_walk import walk

import numpy as np
import pytest
import torch
from conftest import run_stage
from PIL import Image

CPU = torch.device("cpu")
SIZE = (48, 72)
COLOURS = ((40, 60, 200), (200, 180, 40), (60, 190, 70))  # of the three zones, left to right
LEVELS = (0.9, 0.25, 0.02)  # of the class's score: sure, unsure, sure of the background


def zones() -> tuple[np.ndarray, Scores]:
    """An image of three zones, and scores of class 5 that fall from left to right."""
    image = np.repeat(np.array(COLOURS, np.uint8), SIZE[1] // 3, 0)[None].repeat(SIZE[0], 0)
    cam = np.repeat(np.array(LEVELS, np.float16), SIZE[1] // 12)[None, None].repeat(12, 1)
    return image, Scores(np.uint8([5]), cam, SIZE)


def tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)


def columns(path: Path) -> list[int]:
    """The labels in the middle of the three zones."""
    label = np.array(Image.open(path))
    assert (label == label[:1]).all()
    return label[0, SIZE[1] // 6 :: SIZE[1] // 3].tolist()


def test_foreground_needs_the_high_background_score_and_background_the_low_one(tmp_path):
    """Swapped, the unsure zone would be of the class instead of unlabelled (255)."""
    chosen = recipe.AFFINITY_LABELS
    thresholds = chosen.foreground_threshold, chosen.background_threshold
    labelling = AffinityLabelling(tmp_path, thresholds, 10, "torch", CPU)
    labelling("a", *zones())
    assert columns(tmp_path / "a.png") == [5, 255, 0]


def test_pseudo_labels_are_of_the_class_where_it_beats_the_background(tmp_path):
    for threshold, expected in ((0.35, [5, 0, 0]), (0.1, [5, 5, 0]), (0.95, [0, 0, 0])):
        labelling = PseudoLabelling(tmp_path, threshold, 1, "torch", CPU)
        assert labelling("a", *zones()) == threshold
        assert columns(tmp_path / "a.png") == expected


def test_an_image_without_classes_has_no_background_score(tmp_path):
    """Not one of 1, which would be part of the mean that is printed."""
    image, scores = zones()
    nothing = Scores(np.zeros(0, np.uint8), scores.cam[:0], SIZE)
    labelling = PseudoLabelling(tmp_path, "auto", 1, "torch", CPU)
    assert labelling("a", image, nothing) is None and columns(tmp_path / "a.png") == [0, 0, 0]
    assert 0.25 < labelling("b", image, scores) < 0.9


def test_a_walk_needs_an_exponent(capsys):
    with pytest.raises(SystemExit):
        make_random_walk.get_args_parser().parse_args(["--beta", "0"])
    assert "--beta" in capsys.readouterr().err


def edges(views: torch.Tensor) -> torch.Tensor:
    """A stand-in for the boundary network: logits (N, h, w) at stride 4."""
    return views[:, 0, ::4, ::4] - 3


def test_an_image_without_any_class_is_background_in_every_stage(tmp_path):
    image = zones()[0]
    none = Scores(np.zeros(0, np.uint8), np.zeros((0, 12, 18), np.float16), SIZE)
    AffinityLabelling(tmp_path, (0.4, 0.1), 10, "torch", CPU)("a", image, none)
    PseudoLabelling(tmp_path, "auto", 1, "torch", CPU)("b", image, none)
    assert columns(tmp_path / "a.png") == columns(tmp_path / "b.png") == [0, 0, 0]
    autocast = precision.autocast("off", CPU)
    (walked,) = walk(edges, tensor(image)[None], [none], 64, 5, 10.0, 2, autocast)
    assert walked.cam.shape == (0, 12, 18)


def test_the_walk_divides_by_one_maximum_for_all_classes():
    """A class that is faint beside another stays faint: the maximum is GLOBAL, at image size."""
    image = zones()[0]
    cam = np.zeros((2, 12, 18), np.float16)
    cam[0, 3:6, 3:6], cam[1, 8:10, 12:14] = 1, 0.2
    scores = Scores(np.uint8([2, 7]), cam, SIZE)
    autocast = precision.autocast("off", CPU)
    (walked,) = walk(edges, tensor(image)[None], [scores], 64, 5, 10.0, 3, autocast)
    top = upsample(torch.from_numpy(walked.cam), SIZE).amax((1, 2))
    assert abs(top[0] - 1) < 1e-6 and top[1] < 0.3, "each class was divided by its own maximum"


def test_images_walk_together_as_each_alone():
    """Of other contents and other numbers of classes, none among them."""
    rng = np.random.default_rng(0)
    pictures = torch.from_numpy(rng.integers(0, 256, (4, 3, 48, 70)).astype(np.uint8))
    scores = [
        Scores(
            np.arange(1, n + 1, dtype=np.uint8), rng.random((n, 12, 18)).astype(np.float16), SIZE
        )
        for n in (2, 0, 1, 3)
    ]
    how = 64, 5, 10.0, 4, precision.autocast("off", CPU)
    together = walk(edges, pictures, scores, *how)
    for picture, each, walked in zip(pictures, scores, together, strict=True):
        (alone,) = walk(edges, picture[None], [each], *how)
        np.testing.assert_array_equal(walked.classes, each.classes)
        np.testing.assert_allclose(walked.cam, alone.cam, rtol=1e-6)


def test_the_walk_pads_to_the_crop_of_the_boundary_networks_training(inputs, tmp_path):
    """As if it were given; to 512 for an older model.pt, which does not say; never to nonsense."""

    def walked(name: str, *more: object, model: Path = inputs / "affinity/model.pt") -> Path:
        command = ("--data", inputs / "data", "--split", "train", "--scores", inputs / "cam")
        command += ("--checkpoint", model, "--out", tmp_path / name, "--device", "cpu")
        run_stage(make_random_walk.main, *command, "--workers", 0, "--log2-steps", 2, *more)
        return tmp_path / name

    def resolved(folder: Path) -> int:
        return json.loads((folder / "run.json").read_text())["resolved"]["pad_to"]

    state = torch.load(inputs / "affinity/model.pt", weights_only=True)
    auto = walked("auto")
    assert resolved(auto) == state["crop"] == 64
    given = walked("given", "--pad-to", 64)
    assert (auto / "SHA256SUMS").read_bytes() == (given / "SHA256SUMS").read_bytes()

    before = (given / "run.json").read_bytes()
    walked("given")  # made with the option: what auto stands for is no other setting
    assert (given / "run.json").read_bytes() == before

    del state["crop"]
    torch.save(state, tmp_path / "old.pt")
    assert resolved(walked("old", model=tmp_path / "old.pt")) == recipe.RANDOM_WALK.pad_to
    for crop in ("64", -1, 1 << 40):
        torch.save(state | {"crop": crop}, tmp_path / "bad.pt")
        with pytest.raises(InputError, match="crop"):
            walked("bad", model=tmp_path / "bad.pt")
    assert not (tmp_path / "bad").exists()
