"""tools/prepare_animals.py: which images, which labels, which pixels, and the same ones twice."""

from __future__ import annotations

import shutil
from pathlib import Path

import train_classification
from core.data.datasets import VOC_CLASSES, DataRoot
from core.data.images import image_size, read_label, write_label
from core.errors import InputError
from tools import prepare_animals

import numpy as np
import pytest
from PIL import Image

PRESENT = (["cat"], ["dog", "person"], ["sofa"], ["person"], ["cow", "sofa"], ["horse"])


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Twenty-four images of VOC's layout: 12 in train, 18 in train_aug, 6 in val."""
    root = tmp_path / "voc"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True)
    ids = [f"i{n:02}" for n in range(24)]
    rows = []
    for n, image_id in enumerate(ids):
        names = PRESENT[n % 6]
        Image.new("RGB", (600, 300), (n, 90, 90)).save(root / "JPEGImages" / f"{image_id}.jpg")
        mask = np.zeros((300, 600), np.uint8)
        for row, name in enumerate(names):
            mask[100 * row : 100 * row + 100] = VOC_CLASSES.index(name) + 1
        mask[-50:] = 255
        write_label(root / "SegmentationClass" / f"{image_id}.png", mask)
        rows.append(" ".join([image_id, *names]))
    (root / "labels.txt").write_text("\n".join(rows))
    for name, some in (("train", ids[:12]), ("train_aug", ids[:18]), ("val", ids[18:])):
        (root / "ImageSets/Segmentation" / f"{name}.txt").write_text("\n".join(some))
    return root


def make(voc: Path, *more: object) -> DataRoot:
    out = voc.parent / "animals"
    given = ["--voc", str(voc), "--out", str(out), *map(str, more)]
    prepare_animals.main(prepare_animals.get_args_parser().parse_args(given))
    return DataRoot(out)


def test_lists_labels_and_masks(voc):
    data = make(voc, "--images", 10)
    assert data.classes == ["cat", "cow", "dog", "horse", "sheep", "person"]
    train = data.ids("train")
    assert train == ["i00", "i01", "i04", "i05", "i06", "i07", "i10", "i11"]
    extra = set(data.ids("train_aug")) - set(train)
    assert len(extra) == 2 and extra <= {"i12", "i13", "i16", "i17"}
    assert data.ids("val") == ["i18", "i19", "i22", "i23"]
    labels = data.image_labels(train)
    assert [labels[i] for i in train[:4]] == [[1], [3, 6], [2], [4]]
    assert image_size(data.image_path("i00")) == (128, 256)
    mask = read_label(data.mask_path("i04"), data.n_labels, (128, 256))  # a cow above a sofa
    assert sorted(np.unique(mask).tolist()) == [0, 2, 255]
    assert not data.mask_path(min(extra)).exists()


def test_the_same_images_twice_and_others_with_another_seed(voc):
    first = make(voc, "--images", 10).ids("train_aug")
    assert make(voc, "--images", 10).ids("train_aug") == first
    with pytest.raises(InputError, match="animals: made with other settings"):
        make(voc, "--images", 10, "--seed", 1)
    others = []
    for seed in range(1, 6):
        shutil.rmtree(voc.parent / "animals")
        others.append(make(voc, "--images", 10, "--seed", seed).ids("train_aug"))
    assert any(ids != first for ids in others)


def test_a_data_root_of_others_is_left_alone(voc):
    before = (voc / "ImageSets/Segmentation/train.txt").read_text()
    with pytest.raises(InputError, match="voc: holds other files than this tool makes"):
        make(voc, "--out", voc)
    assert (voc / "ImageSets/Segmentation/train.txt").read_text() == before


def test_other_data_is_refused(voc):
    (voc / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(InputError, match="has other classes than VOC's 20"):
        make(voc)


@pytest.mark.parametrize(
    ("options", "is_noted"),
    [
        ("--crop 192", True),
        ("--crop 512", False),
        ("--crop 192 --weights none", False),
        ("--crop 192 --no-re", False),
        ("--crop 192 --re-seams drop", False),
        ("--crop 192 --re-scale relative", False),
    ],
)
def test_the_note_on_small_tiles(options, is_noted):
    given = ["--data", "x", "--out", "y", *options.split()]
    note = train_classification.small_tiles(
        train_classification.get_args_parser().parse_args(given)
    )
    assert (note is not None) == is_noted
