"""tools/prepare_coco.py on a made-up COCO of 12 images: crowds, overlaps, ids with gaps, traps."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from core.data.datasets import DataRoot
from core.data.images import read_label, write_label
from core.errors import InputError
from core.run.main import run_main
from tools import coco, prepare_coco

import made_up_coco
import numpy as np
import pytest
from made_up_coco import (
    CATEGORIES,
    COUNTS,
    N_LABELS,
    SIZE,
    crowd,
    image_id,
    number_of,
    objects,
)
from made_up_coco import prepare as run


@pytest.fixture
def source(tmp_path: Path) -> Path:
    made_up_coco.write(tmp_path, objects())
    return tmp_path


def change(source: Path, split: str, edit: Any) -> None:
    """Edit an annotation file in place."""
    path = source / f"instances_{split}2014.json"
    value = json.loads(path.read_text())
    edit(value)
    path.write_text(json.dumps(value))


def state(root: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every file: what was written anew differs."""
    found = {str(p.relative_to(root)): p.lstat() for p in root.rglob("*") if not p.is_dir()}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in found.items()}


def published(source: Path, category_ids: bool = False, shift: int = 0) -> Path:
    """An archive of masks called by COCO's numbers: a bar of each class of the image."""
    folder = source / "archive" / "val2014"
    folder.mkdir(parents=True)
    index = list(CATEGORIES)
    for i in range(COUNTS["val"]):
        mask = np.zeros(SIZE, np.uint8)
        names = sorted({each["category_id"] for each in objects()[f"val{i}"]})
        for row, category in enumerate(names):
            mask[5 * row : 5 * row + 5] = category if category_ids else index.index(category) + 1
        mask[mask > 0] += shift
        mask[-2:] = 255
        if names:
            write_label(folder / f"{number_of('val', i):012d}.png", mask)
    return folder.parent


pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # pycocotools'
needs_coder = pytest.mark.usefixtures("_coder")


@pytest.fixture
def _coder() -> None:
    pytest.importorskip("pycocotools.mask")


@needs_coder
def test_lists_labels_classes_and_masks(source, capsys):
    root = run(source)
    data = DataRoot(root)
    assert data.classes == list(CATEGORIES.values())
    train, val = data.ids("train"), data.ids("val")
    assert train == [image_id("train", number_of("train", i)) for i in range(7)]
    assert val == [image_id("val", number_of("val", i)) for i in range(3)]
    labels = data.image_labels([*train, *val])
    assert [labels[i] for i in train[:3]] == [[1, 12], [1, 80], [11]]
    assert [labels[i] for i in val] == [[1, 12, 26], [1, 11, 80], [11, 12]]
    assert all((root / "JPEGImages" / f"{i}.jpg").is_symlink() for i in train)
    made = {p.stem for p in (root / "SegmentationClass").iterdir()}
    assert made == set(val)
    record = json.loads((root / "coco.json").read_text())
    assert record["masks"]["rule"] == coco.RULE and record["masks"]["count"] == 3
    assert record["categories"] == {str(k): v for k, v in CATEGORIES.items()}
    out = capsys.readouterr().out
    assert "7 images" in out and "1 without objects left out" in out
    assert record["masks"]["digest"] in out


@needs_coder
def test_masks_are_pycocotools_decoding_smallest_on_top(source):
    from pycocotools.coco import COCO

    root = run(source, "--train-masks")
    for split in COUNTS:
        api = COCO(str(source / f"instances_{split}2014.json"))
        for name in DataRoot(root).ids(split):
            expected = made_up_coco.expected_mask(api, int(name[-12:]))
            path = root / "SegmentationClass" / f"{name}.png"
            np.testing.assert_array_equal(read_label(path, N_LABELS, SIZE), expected)
    mask = read_label(root / "SegmentationClass" / f"{image_id('val', 101)}.png", N_LABELS)
    assert (mask[16, 10], mask[16, 17], mask[16, 22], mask[16, 27]) == (1, 12, 12, 26)
    crowd_mask = read_label(root / "SegmentationClass" / f"{image_id('val', 104)}.png", N_LABELS)
    assert crowd_mask[33, 45] == 80  # the crowd's class


@needs_coder
def test_all_images_are_pictures_with_none_of_the_classes(source):
    root = run(source, "--all-images")
    data = DataRoot(root)
    assert [len(data.ids(split)) for split in COUNTS] == [8, 4]
    empty = image_id("val", number_of("val", 3))
    assert data.image_labels(data.ids("val"))[empty] == []
    assert not read_label(data.mask_path(empty), N_LABELS, SIZE).any()


@needs_coder
def test_started_again_it_goes_on_and_other_options_are_refused(source):
    root = run(source)
    before = state(root / "SegmentationClass") | state(root / "JPEGImages")
    (root / "SegmentationClass" / f"{image_id('val', 101)}.png").unlink()
    digest = json.loads((root / "coco.json").read_text())["masks"]["digest"]
    run(source)
    after = state(root / "SegmentationClass") | state(root / "JPEGImages")
    assert {name for name in before if before[name] != after[name]} == {
        f"{image_id('val', 101)}.png"
    }
    assert json.loads((root / "coco.json").read_text())["masks"]["digest"] == digest
    with pytest.raises(InputError, match="made with all_images False instead of True"):
        run(source, "--all-images")
    write_label(root / "SegmentationClass" / f"{image_id('val', 101)}.png", np.ones(SIZE, np.uint8))
    with pytest.raises(InputError, match="no longer those that it was made with"):
        run(source)


@needs_coder
@pytest.mark.parametrize("how", ["symlink", "hardlink", "copy"])
def test_links(source, how):
    root = run(source, "--link", how)
    name = f"{image_id('train', 1)}.jpg"
    ours, theirs = root / "JPEGImages" / name, source / "train2014" / name
    assert ours.is_symlink() == (how == "symlink")
    assert ours.samefile(theirs) == (how != "copy")
    before = state(root / "JPEGImages")
    run(source, "--link", how)
    assert state(root / "JPEGImages") == before


@pytest.mark.parametrize("link", ["symlink", "copy"])
def test_published_masks_are_taken_without_pycocotools(source, monkeypatch, link):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    folder = published(source)
    root = run(source, "--masks", str(folder), "--all-images", "--link", link)
    record = json.loads((root / "coco.json").read_text())["masks"]
    assert (record["rule"], record["count"]) == ("published: archive", 4)
    ours = root / "SegmentationClass" / f"{image_id('val', 101)}.png"
    theirs = folder / "val2014" / f"{101:012d}.png"
    assert ours.is_symlink() == (link == "symlink")
    assert ours.read_bytes() == theirs.read_bytes()


def test_a_mask_with_another_class_is_noted(source, capsys):
    folder = published(source)
    path = folder / "val2014" / f"{107:012d}.png"
    mask = read_label(path, N_LABELS)
    mask[0] = 1
    write_label(path, mask)
    run(source, "--masks", str(folder))
    assert "note: 1 masks hold classes that the annotations do not have" in capsys.readouterr().out


def test_category_ids_are_refused_by_name(source):
    folder = published(source, category_ids=True)
    with pytest.raises(InputError, match=r"^category ids, not classes: .*104.png has 90, the id"):
        run(source, "--masks", str(folder))
    (folder / "val2014" / f"{104:012d}.png").unlink()
    drop = {number_of("val", i) for i in (1, 3)}

    def leave_out(value):
        value["images"] = [v for v in value["images"] if v["id"] not in drop]
        value["annotations"] = [v for v in value["annotations"] if v["image_id"] not in drop]

    change(source, "val", leave_out)
    with pytest.raises(InputError, match=r"101.png has 28, .* 'umbrella', which is class 26; take"):
        # No label above 80 is left; 1, 11, 13 and 28 are the pictures' own ids.
        run(source, "--masks", str(folder))
    assert not (source / "coco").exists()


def test_other_numbers_are_refused(source):
    folder = published(source, shift=1)
    with pytest.raises(InputError, match=r"a class that the annotations do not have there \(3 "):
        run(source, "--masks", str(folder))


def test_without_pycocotools(source, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(InputError, match=r"pip install pycocotools.*--masks"):
        run(source)
    assert not (source / "coco").exists()


@needs_coder
@pytest.mark.parametrize(
    "shape",
    [
        [[1, 1, 2, 2, "x", 3]],
        [[1, 1, 2, 2, 3, 3, 4]],
        [[1, 1, 1e9, 2, 3, 1e9]],
        [[float("nan")] * 6],
        [7],
        {"size": [40, 60], "counts": [10, 10]},
        {"size": [40, 60], "counts": [-10, 2410]},
        {"size": [60, 40], "counts": [2400]},
        {"size": [40, 60], "counts": "zzzz"},
        {"size": [40, 60], "counts": "\xff" * 500},
        {"size": [40, 60]},
        {"counts": 5},
    ],
)
def test_damaged_segmentations(shape):
    with pytest.raises(InputError, match=r"^here: a segmentation is no polygon or RLE of 40x60"):
        coco.decode(shape, SIZE, "here")


@needs_coder
def test_compressed_runs_and_lines():
    from pycocotools import mask

    inside = np.zeros(SIZE, np.uint8, order="F")
    inside[3:9, 4:40] = 1
    runs = mask.encode(inside)
    for counts in (runs["counts"], runs["counts"].decode(), crowd(inside > 0)["counts"]):
        found = coco.decode({"size": list(SIZE), "counts": counts}, SIZE, "here")
        np.testing.assert_array_equal(found, inside > 0)
    assert not coco.decode([[1, 1, 5, 5]], SIZE, "here").any()


def remove(*keys: str) -> Any:
    return lambda value: [value.pop(key) for key in keys]


WRONG = {
    "captions": ("val", remove("categories"), "no list of 'categories'"),
    "image info": ("val", remove("annotations"), "no list of 'annotations'"),
    "keypoints": ("train", lambda v: v["categories"][0].update(keypoints=[]), "of all classes"),
    "class twice": ("val", lambda v: v["categories"][0].update(name="person"), "there twice"),
    "class of spaces": ("val", lambda v: v["categories"][0].update(name="person "), "there twice"),
    "background": ("val", lambda v: v["categories"][0].update(name="Background"), "leave category"),
    "none": ("val", lambda v: v["categories"][0].update(name="background: none"), "leave category"),
    "ending": ("val", lambda v: v["images"][0].update(file_name="a.jfif"), "a.jfif' ends in"),
    "class name": ("val", lambda v: v["categories"][0].update(name="a/b"), "'a/b' cannot be"),
    "other classes": ("val", lambda v: v["categories"][0].update(name="comb"), "other categories"),
    "category": ("train", lambda v: v["annotations"][0].update(category_id=12), "category 12, wh"),
    "no area": ("val", lambda v: v["annotations"][0].pop("area"), "number 0 .* no sound 'area'"),
    "file name": ("val", lambda v: v["images"][0].update(file_name="../a.jpg"), "cannot be part"),
    "space": ("val", lambda v: v["images"][0].update(file_name="a b.jpg"), "a space; rename"),
    "id twice": ("val", lambda v: v["images"][0].update(id=101), "used twice"),
    "name twice": ("val", lambda v: v["images"][0].update(file_name=f"{image_id('val', 101)}.jpg"),
                   "two images have one file name"),
    "size": ("val", lambda v: v["images"][1].update(width=61), r"40x60 pixels, by the .*\(40, 61"),
    "huge": ("val", lambda v: v["images"][1].update(width=10**9), "40x1000000000 pixels"),
    "nothing": ("val", lambda v: v["annotations"].clear(), "no objects"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_annotations_are_one_line_and_nothing_is_made(source, case):
    split, edit, message = WRONG[case]
    change(source, split, edit)
    with pytest.raises(InputError, match=message) as error:
        run(source, "--masks", str(source))  # looked at last
    assert ("\n" not in str(error.value) and "instances_" in str(error.value)) or case == "size"
    assert not (source / "coco").exists()


def test_missing_images_folders_and_masks(source, capsys):
    with pytest.raises(InputError, match=r"val2014_000000000101.png: no such mask in the folder"):
        run(source, "--masks", str(source / "val2014"))
    folder = published(source)
    for i in (0, 1):
        (source / "train2014" / f"{image_id('train', number_of('train', i))}.jpg").unlink()
    with pytest.raises(InputError, match=r"000001.jpg: no such image \(and 1 more\); unpack"):
        run(source, "--masks", str(folder))
    with pytest.raises(SystemExit):
        run_main(lambda: run(source, "--masks", str(source / "none")))
    assert "none: no such directory" in capsys.readouterr().err
    with pytest.raises(InputError, match="not made by this tool"):
        (source / "coco").mkdir()
        (source / "coco" / "mine.txt").write_text("")
        prepare_coco.start(source / "coco", {})


@needs_coder
@pytest.mark.parametrize("how", ["copy", "hardlink", "symlink"])
def test_pictures_that_lie_where_they_are_put_stay(source, how):
    """Where the originals were deleted; nothing is replaced by a link to itself."""
    root = run(source, "--link", how)
    folder, before = root / "JPEGImages", state(root / "JPEGImages")
    pictures = {path.name: path.read_bytes() for path in folder.iterdir()}
    run(source, "--link", how, "--images", str(folder), str(folder))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == pictures
    assert state(folder) == before
