"""tools/make_shapes.py: the layout, the same bytes from the same settings, and what it refuses."""

from __future__ import annotations

from pathlib import Path

from core.data.images import voc_palette
from core.errors import InputError
from core.run.main import run_main
from tools import make_shapes

import numpy as np
import pytest
from PIL import Image


def make(out: Path, *options: str) -> Path:
    """Run the tool on a small data set; later options win over these."""
    small = ["--out", str(out), "--train", "5", "--val", "2", "--size", "64"]
    make_shapes.main(make_shapes.get_args_parser().parse_args([*small, *options]))
    return out


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("shapes") / "data")


def test_layout(data: Path) -> None:
    train, val = [f"train_{i:05d}" for i in range(5)], [f"val_{i:05d}" for i in range(2)]
    for split, names in (("train", train), ("train_aug", train), ("val", val)):
        text = (data / "ImageSets" / "Segmentation" / f"{split}.txt").read_text()
        assert text.split("\n") == [*names, ""]
    for folder, suffix in (("JPEGImages", "jpg"), ("SegmentationClass", "png")):
        assert sorted(p.name for p in (data / folder).iterdir()) == [
            f"{name}.{suffix}" for name in train + val
        ]
    with Image.open(data / "JPEGImages" / "train_00000.jpg") as image:
        assert image.size == (64, 64) and image.mode == "RGB"
    assert len((data / "classes.txt").read_text().split()) == 5


def test_labels_agree_with_masks(data: Path) -> None:
    classes = (data / "classes.txt").read_text().split()
    rows = [line.split() for line in (data / "labels.txt").read_text().splitlines()]
    assert len(rows) == 7
    for name, *labels in rows:
        with Image.open(data / "SegmentationClass" / f"{name}.png") as mask:
            assert mask.mode == "P" and mask.size == (64, 64)
            assert mask.getpalette()[: 3 * 6] == voc_palette()[: 3 * 6]
            values = set(np.unique(np.asarray(mask)).tolist()) - {0, 255}
        assert labels and {classes.index(label) + 1 for label in labels} == values


def test_same_settings_same_bytes(data: Path, tmp_path: Path) -> None:
    assert contents(make(tmp_path / "again")) == contents(data)


def test_an_image_does_not_depend_on_the_count(data: Path, tmp_path: Path) -> None:
    few, many = contents(make(tmp_path / "few", "--train", "2", "--val", "1")), contents(data)
    pictures = [name for name in few if name.endswith((".jpg", ".png"))]
    assert len(pictures) == 6
    assert all(few[name] == many[name] for name in pictures)


def test_another_seed_another_image() -> None:
    images = [make_shapes.draw(64, seed, split, 0)[0] for seed, split in ((0, 0), (1, 0), (0, 1))]
    assert not np.array_equal(images[0], images[1]) and not np.array_equal(images[0], images[2])


def test_hardly_visible_object_does_not_count() -> None:
    low = make_shapes.Thing(1, x=32, y=32, major=14, minor=10, angle=0.0, has_head=False)
    top = make_shapes.Thing(2, x=34, y=32, major=14, minor=10, angle=0.0, has_head=False)
    label = make_shapes.label_map([low, top], 64)
    assert make_shapes.present(label) == [2]
    assert label[32, 19] == 255  # what is left of the lower one is neither class nor background


def test_second_run_returns_at_once(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(make_shapes, "draw", None)  # drawing anything would fail
    make(data)
    assert "already made" in capsys.readouterr().out


def test_other_settings_are_refused_in_one_line(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(data)
    with pytest.raises(SystemExit) as stop:
        run_main(lambda: make(data, "--size", "96"))
    message = capsys.readouterr().err.strip()
    assert stop.value.code == 1
    assert "size 64 instead of 96" in message and "--overwrite" in message
    assert "\n" not in message and contents(data) == before


def test_overwrite_starts_again(tmp_path: Path) -> None:
    out = make(tmp_path / "data")
    make(out, "--train", "1", "--val", "1", "--overwrite")
    assert len(list((out / "JPEGImages").iterdir())) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_the_old_set_stays_until_the_new_one_is_there(tmp_path: Path, monkeypatch) -> None:
    before = contents(out := make(tmp_path / "data"))
    monkeypatch.setattr(Path, "rename", None)
    with pytest.raises(TypeError):
        make(out, "--seed", "1", "--overwrite")
    assert contents(out) == before
    monkeypatch.setattr("os.path.ismount", out.__eq__)
    with pytest.raises(InputError, match="data: a mount point cannot be replaced; give a folder"):
        make(out, "--seed", "1", "--overwrite")


def test_foreign_files_are_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="other files"):
        make(tmp_path, "--overwrite")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("option", ["--train", "--val", "--size", "--seed"])
def test_impossible_numbers_are_refused(tmp_path: Path, option: str) -> None:
    with pytest.raises(SystemExit) as end:
        make(tmp_path / "data", option, "-1")
    assert end.value.code == 2
    assert not any(tmp_path.iterdir())
