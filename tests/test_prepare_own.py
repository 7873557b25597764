"""tools/prepare_own.py: pictures, masks and lists to a data root, and what it leaves alone."""

import json
import os
import shutil
from pathlib import Path

from core.data import images
from core.errors import InputError
from tools import doctor
from tools.own import found, pictures

import numpy as np
import pytest
from own_forms import (
    CAT_DOG,
    SIZE,
    TABLES,
    coco,
    contents,
    four_pictures,
    labels_of,
    make,
    mask_of,
    masks_for,
    picture,
    write,
)
from PIL import Image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return four_pictures(tmp_path / "pictures")


def test_folders(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = tmp_path / "pictures"
    for i in range(10):
        picture(source / f"cat/{i}.jpg", i)
        picture(source / f"red panda/deeper/{i}.png", i)
        picture(source / f"_negative/{i}.JPG", i, format="JPEG")
    picture(source / "lost.jpg")
    picture(source / "cat/.hidden.jpg")
    before = contents(source)
    data = make(source, "--val", "0.2")
    assert data.classes == ["cat", "red panda"]
    train, val = labels_of(data), labels_of(data, "val")
    assert len(train) == 24 and len(val) == 6 and not train.keys() & val.keys()
    for names in ({"cat"}, {"red panda"}, set()):
        assert sum(names == each for each in val.values()) == 2
    of = {"cat": {"cat"}, "red": {"red panda"}, "": set()}
    assert all(of[i.split("_")[0]] == names for i, names in (train | val).items())
    assert data.ids("train_aug") == data.ids("train")
    assert contents(source) == before
    copied = data.image_path("cat_3").read_bytes()
    assert copied == before["cat/3.jpg"]
    printed = capsys.readouterr().out
    assert "left out: 1 as lost.jpg: in no folder of a class" in printed
    assert ["cat", "8", "2"] in [line.split() for line in printed.splitlines()]
    findings = doctor.check_data(doctor.get_args_parser().parse_args(
        ["--data", str(data.root), "--split", "train"]))  # fmt: skip
    assert "FAIL" not in {level for level, *_ in findings}


@pytest.mark.parametrize("ending", ["webp", "bmp", "tif", "tiff"])
def test_other_forms_become_png(tmp_path: Path, ending: str) -> None:
    options = {"lossless": True} if ending == "webp" else {}
    path = picture(tmp_path / "pictures" / "cat" / f"x.{ending}", **options)
    data = make(tmp_path / "pictures")
    assert data.image_path("cat_x").suffix == ".png"
    with Image.open(path) as image:
        pixels = images.as_array(images.read_image(data.image_path("cat_x")))
        assert np.array_equal(pixels, np.asarray(image.convert("RGB")))


def test_pages_depths_and_wrong_endings(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    source = tmp_path / "pictures"
    first, second = (Image.new("RGB", (9, 7), colour) for colour in ("red", "blue"))
    (source / "cat").mkdir(parents=True)
    first.save(source / "cat/pages.tif", save_all=True, append_images=[second])
    grey = np.arange(63, dtype=np.uint16).reshape(7, 9) * 1000
    Image.fromarray(grey).save(source / "cat/deep.tif")
    Image.fromarray(grey.astype(np.float32)).save(source / "cat/float.tif")
    picture(source / "cat/really.jpg", format="WEBP")
    (source / "cat/phone.heic").write_bytes(b"....ftypheic....")
    (source / "cat/renamed.jpg").write_bytes(b"....ftypheic....")
    (source / "cat/cut.jpg").write_bytes(picture(tmp_path / "whole.jpg").read_bytes()[:-300])
    (source / "cat/empty.png").write_bytes(b"")
    data = make(source)
    assert data.ids("train") == ["cat_deep", "cat_pages", "cat_really"]
    assert images.read_image(data.image_path("cat_pages"))[0].min() == 255
    assert images.read_image(data.image_path("cat_deep"))[0, 6, 8] == 62000 >> 8
    assert images.read_image(data.image_path("cat_really")).shape == (3, *SIZE)
    printed = capsys.readouterr().out
    assert "cat/pages.tif: the first of 2 pages" in printed
    assert "left out: 2 as cat/phone.heic: HEIC or AVIF; convert a copy first" in printed
    assert "cat/float.tif: 32 bits a pixel" in printed
    assert "1 as cat/cut.jpg: truncated" in printed and "1 as cat/empty.png: not a" in printed


def turned(folder: Path) -> Path:
    """a.jpg lies on its side, and its EXIF says so; labels for it upright, of 24x32 pixels."""
    exif = Image.Exif()
    exif[images.ORIENTATION] = 6
    picture(folder / "a.jpg", exif=exif)
    shape = {"label": "cat", "points": [[0, 0], [8, 0], [8, 2], [0, 2]]}
    size = {"imageHeight": 32, "imageWidth": 24}
    return write(folder / "a.json", {"imagePath": "a.jpg", "shapes": [shape], **size})


def test_what_nothing_is_known_of_is_left_out(folder: Path, tmp_path: Path, capsys) -> None:
    """It is no negative, unless --negatives says so."""
    for name in ("cat/a.jpg", "none/b.jpg", "_Unlabelled/c.jpg"):
        picture(tmp_path / "folders" / name)
    assert labels_of(make(tmp_path / "folders")) == {"cat_a": {"cat"}, "none_b": set()}
    assert "left out: 1 as _Unlabelled/c.jpg: labelled '_Unlabelled'" in capsys.readouterr().out
    data = make(tmp_path / "folders", "--negatives", "unlabelled", "--overwrite")
    assert labels_of(data)["_Unlabelled_c"] == set()
    table = write(tmp_path / "labels.csv", "a.jpg,cat\nb.jpg,void\nc.png,cat;void\nd.jpg,none\n")
    data = make(folder, "--labels", table, "--out", tmp_path / "my", "--overwrite")
    assert labels_of(data) == {"a": {"cat"}, "c": {"cat"}, "sub_d": set()}


def test_names_in_two_unicode_forms(tmp_path: Path) -> None:
    """As macOS writes a folder's name, and a keyboard that of a class."""
    for name in ("cafe\u0301", "tea"):
        picture(tmp_path / "pictures" / name / "a.jpg")
    classes = write(tmp_path / "classes.txt", "caf\u00e9\ntea\n")
    for given in ((), ("--classes", classes, "--overwrite")):
        data = make(tmp_path / "pictures", *given)
        assert labels_of(data) == {"caf\u00e9_a": {"caf\u00e9"}, "tea_a": {"tea"}}


def test_turned_pictures(folder: Path, capsys: pytest.CaptureFixture) -> None:
    labels = turned(folder)
    data = make(folder, "--labels", labels)
    assert data.image_path("a").read_bytes() == (folder / "a.jpg").read_bytes()
    upright = images.read_image(folder / "a.jpg")
    data = make(folder, "--labels", labels, "--with-masks", "--overwrite")
    assert data.image_path("a").suffix == ".png"  # nothing is lost, and no EXIF to misread
    assert np.array_equal(images.read_image(data.image_path("a")), upright)
    mask = mask_of(data, "a")
    assert mask.shape == (32, 24) and mask[:2, :8].all() and mask.sum() == 16

    value = json.loads(labels.read_text()) | {"imageHeight": 24, "imageWidth": 32}
    write(labels, value)
    data = make(folder, "--labels", labels, "--with-masks", "--overwrite")
    assert not data.mask_path("a").exists() and labels_of(data) == {"a": {"cat"}}
    assert "labels are for 32x24 pixels, upright it has 24x32" in capsys.readouterr().out


def test_masks(folder: Path, tmp_path: Path) -> None:
    values = {"a.png": [1], "b.png": [2, 1, 255], "c_mask.png": [2], "sub/d.png": [255]}
    masks = masks_for(folder, tmp_path / "masks", values)
    data = make(folder, "--masks", masks)
    assert data.classes == ["class1", "class2"]
    write(masks / "classes.txt", "_background_\ncat\ndog\n")
    data = make(folder, "--masks", masks, "--overwrite")
    assert labels_of(data) == CAT_DOG
    assert mask_of(data, "b")[:3, 0].tolist() == [2, 1, 255]
    table = write(tmp_path / "labels.csv", TABLES["header"])
    more = ("--labels", table, "--classes", masks / "classes.txt", "--overwrite")
    assert labels_of(make(folder, "--masks", masks, *more)) == CAT_DOG
    with pytest.raises(InputError, match="--masks and --labels need --classes"):
        make(folder, "--masks", masks, "--labels", table)


def test_no_background(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """As masks say, or outlines: outside these nothing is known."""
    masks = masks_for(folder, tmp_path / "masks", {"a.png": [], "b.png": [1]})
    for name, some in (("c", [2, 255]), ("sub/d", [255])):
        label = np.resize(some, SIZE).astype(np.uint8)
        (masks / name).parent.mkdir(exist_ok=True)
        images.write_label(masks / f"{name}.png", label)
    classes = write(tmp_path / "classes.txt", "background: none\ncat\ndog\n")
    data = make(folder, "--masks", masks, "--classes", classes)
    assert not data.background and data.classes == ["cat", "dog"]
    assert labels_of(data) == {"c": {"dog"}}
    printed = capsys.readouterr().out
    assert "left out: 2 as a.jpg: mask: holds label 0, yet the classes begin with" in printed
    assert "left out: 1 as sub/d.jpg: none of the classes, which begin with `backg" in printed
    labels = ("--labels", coco(folder), "--with-masks", "--classes", classes, "--overwrite")
    data = make(folder, *labels)
    assert not data.background and "sub_d" not in data.ids("train")
    assert set(np.unique(mask_of(data, "a"))) == {1, 255}


@pytest.mark.parametrize("names", ["cat void dog", "background void cat dog", "void ignore cat"])
def test_no_class_among_the_classes(folder: Path, tmp_path: Path, names: str) -> None:
    """Left out, it would number the classes after it anew, and the masks say otherwise."""
    masks = masks_for(folder, tmp_path / "masks", {"a.png": [1], "b.png": [2]})
    classes = write(masks / "classes.txt", names.replace(" ", "\n"))
    with pytest.raises(
        InputError, match=r"classes\.txt: '\w+' stands among the classes and counts"
    ):
        make(folder, "--masks", masks)
    write(classes, "background\ncat\ndog\nvoid\nunlabeled\n")
    assert make(folder, "--masks", masks).classes == ["cat", "dog"]
    write(classes, "0 background\n1 cat\n2 dog\n")
    with pytest.raises(InputError, match="'0 background' has a number before the name"):
        make(folder, "--masks", masks, "--overwrite")
    write(classes, "__ignore__\n_background_\ncat\ndog\n")  # labelme's, from -1
    assert make(folder, "--masks", masks, "--overwrite").classes == ["cat", "dog"]


def test_what_cannot_be_read_is_left_out(folder: Path, tmp_path: Path, capsys) -> None:
    """Links that lead nowhere or to themselves, pictures of other forms."""
    for name in ("cat", "dog"):
        picture(folder / name / f"{name}.jpg")
    (folder / "cat/gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (folder / "cat/loop.jpg").symlink_to("loop.jpg")
    (folder / "dog/moving.gif").write_bytes(b"GIF89a")
    Image.new("L", (9, 7)).save(tmp_path / "x.pgm")
    (folder / "fox").mkdir()
    shutil.copy(tmp_path / "x.pgm", folder / "fox/x.pgm")
    make(folder)
    printed = capsys.readouterr().out
    assert "cat/gone.jpg" in printed and "dog/moving.gif: .gif is not read" in printed
    assert "1 other files, as" in printed and "fox/x.pgm: no pictures by their endings" in printed
    assert "cat/loop.jpg: Too many levels of symbolic links; make it readable" in printed


def test_a_folder_that_cannot_be_read(folder: Path, tmp_path: Path, monkeypatch) -> None:
    """Its pictures are not left out in silence."""
    for name in ("cat", "dog"):
        picture(folder / name / "x.jpg")
    scan = os.scandir

    def scandir(path="."):
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(OSError, match=r"Permission denied: .*pictures/dog"):
        make(folder)
    assert not (tmp_path / "my").exists()


def test_a_mask_of_two_pictures(folder: Path, tmp_path: Path) -> None:
    masks = masks_for(folder, tmp_path / "masks", {"a.png": [1]})
    for other in ("more/a.jpg", "a.png"):
        picture(folder / other, 7)
        with pytest.raises(InputError, match=r"masks/a\.png: the mask of a\.jpg or of"):
            make(folder, "--masks", masks)
        (folder / other).unlink()


def test_a_name_that_is_not_utf_8(folder: Path, capsys: pytest.CaptureFixture) -> None:
    """As archives of other systems leave it: read or named like any other."""
    shutil.copy(folder / "a.jpg", Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.jpg")))
    Path(os.fsdecode(os.fsencode(folder) + b"/\xe9.pgm")).touch()
    labels = write(folder.parent / "labels.csv", "a.jpg,cat\nb.jpg,dog\nc.png,dog\nsub/d.jpg,dog\n")
    make(folder, "--labels", labels)
    printed = capsys.readouterr().out
    assert r"left out: 1 as caf\xe9.jpg: no labels" in printed and r"\xe9.pgm: no pict" in printed
    data = make(folder, "--labels", labels, "--rest-negative", "--overwrite")
    assert labels_of(data)["caf_xe9"] == set()


def test_masks_beside_the_pictures(folder: Path, capsys: pytest.CaptureFixture) -> None:
    values = {"a.png": [255], "b.png": [], "c_mask.png": [255, 255]}
    masks_for(folder, folder, values)
    data = make(folder, "--masks", folder)
    assert labels_of(data) == {"a": {"class1"}, "b": set(), "c": {"class1"}}
    assert mask_of(data, "c")[:3, 0].tolist() == [1, 1, 0]
    printed = capsys.readouterr().out
    assert "255 is taken as the one class" in printed and "1 as sub/d.jpg: no mask" in printed


def test_lists_by_class() -> None:
    labels = {f"{n}{i}": {n} for n, count in (("x", 40), ("y", 10), ("z", 1)) for i in range(count)}
    labels |= {f"xy{i}": {"x", "y"} for i in range(10)} | {f"none{i}": set() for i in range(20)}
    val = found.split(labels, 0.2, 0)
    assert val == found.split(dict(reversed(labels.items())), 0.2, 0)
    assert val != found.split(labels, 0.2, 1)
    counts = {n: sum(n in labels[i] for i in val) for n in "xyz"}
    assert counts["y"] == 4 and counts["x"] == 10 and counts["z"] == 0
    assert sum(not labels[i] for i in val) == 4
    val = found.split(labels, 0.9, 0)
    assert {n for i, names in labels.items() if i not in val for n in names} == set("xyz")
    assert found.split({"a": {"x"}, "b": set(), "c": set(), "d": set()}, 0.5, 0) == set()


def test_ids_are_safe_and_unique(tmp_path: Path) -> None:
    names = ("a/b.jpg", "a_b.jpg", "A_B.png", "my photo #7.jpg", "ü/ß.v2.jpg", f"{'x' * 200}.jpg",
             "-.-/..x.jpg", "tab\there.jpg")  # fmt: skip
    ids = pictures.ids_of(pictures.Picture(tmp_path / name, name) for name in names)
    assert list(ids.values())[:5] == ["a_b", "a_b_2", "A_B_3", "my_photo_7", "ü_ß.v2"]
    assert len({i.casefold() for i in ids.values()}) == len(names)
    assert all(len(i) < 160 and not i.startswith(".") and len(i.split()) == 1 for i in ids.values())


def test_a_second_start(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    table = write(tmp_path / "labels.csv", TABLES["header"])
    root = make(folder, "--labels", table).root
    before = contents(root)
    make(folder, "--labels", table)
    assert "already made" in capsys.readouterr().out
    (root / "labels.txt").rename(tmp_path / "labels.txt")
    with pytest.raises(InputError, match="my: 1 of its files missing, as labels"):
        make(folder, "--labels", table)
    (tmp_path / "labels.txt").rename(root / "labels.txt")
    with pytest.raises(InputError, match="made of other settings; --overwrite"):
        make(folder, "--labels", table, "--seed", "1")
    write(table, TABLES["header"] + "\n")
    with pytest.raises(InputError, match="made of other inputs; --overwrite"):
        make(folder, "--labels", table)
    write(root / "SegmentationClass" / "mine.txt", "by hand")
    with pytest.raises(InputError, match="1 files that this tool did not make, as Segment"):
        make(folder, "--labels", table, "--overwrite")
    (root / "SegmentationClass" / "mine.txt").unlink()
    make(folder, "--labels", table, "--overwrite")
    after = contents(root)
    assert before.pop("own.json") != after.pop("own.json") and before == after
    write(tmp_path / "other" / "my" / "thing.txt", "not ours")
    with pytest.raises(InputError, match="holds other files than this tool makes"):
        make(folder, "--labels", table, "--overwrite", "--out", tmp_path / "other" / "my")
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_nothing_is_left_of_a_failed_start(folder: Path, tmp_path: Path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pictures.shutil, "copyfile", full)
    table = write(tmp_path / "labels.csv", TABLES["header"])
    with pytest.raises(OSError, match=r"No space left.*JPEGImages/a.jpg"):
        make(folder, "--labels", table)
    assert {p.name for p in tmp_path.iterdir()} == {"pictures", "labels.csv"}


def test_wrong_folders(folder: Path, tmp_path: Path) -> None:
    def refused(words: str, source: Path, *given: object) -> None:
        with pytest.raises(InputError, match=words):
            make(source, *given)

    picture(tmp_path / "flat" / "a.jpg")
    picture(tmp_path / "lists" / "train" / "cat" / "a.jpg")
    (tmp_path / "nothing").mkdir()
    write(tmp_path / "yolo" / "a.txt", "0 .5 .5 .1 .1")
    refused("no folders of classes; give --labels", tmp_path / "flat")
    refused("train are lists, not classes; give them one by one: .*lists/train", tmp_path / "lists")
    refused(r"no pictures in it \(.jpg", tmp_path / "nothing")
    refused("no such folder", tmp_path / "absent")
    refused("/ holds other files than this tool makes", folder, "--out", "/")
    refused("YOLO", folder, "--labels", tmp_path / "yolo")
    refused("no such file or folder", folder, "--labels", tmp_path / "absent.csv")
    refused("no mask has the name of a picture", folder, "--masks", tmp_path / "nothing")
    masks = masks_for(folder, tmp_path / "masks", {"a.png": [38], "b.png": [75]})
    refused("hold the labels 38, 75; name those from 1 on", folder, "--masks", masks)
    table = write(tmp_path / "labels.csv", TABLES["header"])
    refused("no outline in it to draw", folder, "--labels", table, "--with-masks")
    refused("--with-masks draws the outlines in --labels", folder, "--with-masks")
    picture(tmp_path / "rgb" / "a.png")
    refused("left out: 1, mask: not an 8-bit palette or grey PNG but RGB", folder,
            "--masks", tmp_path / "rgb")  # fmt: skip
