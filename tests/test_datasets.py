"""Reading images, label maps and image-level labels; the random views."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

from core.data import images
from core.data.datasets import VOC_CLASSES, DataRoot, TrainingViews, check_name
from core.data.images import write_label
from core.data.transforms import MEAN, STD, RandomView, normalize
from core.errors import InputError

import numpy as np
import pytest
import torch
from conftest import SHARED, write_data_root
from PIL import Image
from test_images import picture

REPO_LISTS = Path(__file__).resolve().parent.parent / "data"


def test_a_mask_that_is_not_turned_with_its_image(tmp_path):
    write_label(tmp_path / "a.png", np.zeros((30, 40), np.uint8))
    with pytest.raises(InputError, match=r"30x40; .* as the image's EXIF says"):
        images.read_label(tmp_path / "a.png", 4, (40, 30))


def test_two_images_of_one_id(data_root):
    folder = data_root / "JPEGImages"
    (folder / "train0.jpg").rename(folder / "train0.Jpg")
    assert DataRoot(data_root).image_path("train0").name == "train0.Jpg"
    (folder / "train1.PNG").write_bytes((folder / "train1.jpg").read_bytes())
    with pytest.raises(InputError, match=r"train1\.PNG: train1\.jpg has the same id; remove one"):
        DataRoot(data_root).image_path("train1")


@pytest.mark.parametrize("name", ["_background_", "Background", "__ignore__", "void", "BACKGROUND"])
def test_labels_that_are_no_classes(data_root, name):
    text = (data_root / "classes.txt").read_text()
    (data_root / "classes.txt").write_text(f"{name}\n{text}")
    with pytest.raises(InputError, match=f"classes.txt: leave '{name}' out"):
        DataRoot(data_root)


def test_no_background_is_said_first(data_root):
    """Elsewhere it would count as a class."""
    text = (data_root / "classes.txt").read_text()
    (data_root / "classes.txt").write_text(f"{text}background: none\n")
    with pytest.raises(InputError, match="let `background: none` be the first line"):
        DataRoot(data_root)


@pytest.mark.parametrize("name", ["classes.txt", "labels.txt"])
def test_a_link_that_leads_nowhere_is_no_absent_file(data_root, name):
    """Without a classes.txt the classes are VOC's."""
    (data_root / name).unlink()
    (data_root / name).symlink_to("moved.txt")
    with pytest.raises(InputError, match=f"{name}: no such file; list"):
        DataRoot(data_root).image_labels(["train0"])


@pytest.mark.parametrize("end", ["\n", "\x85", "\u2028", "\u2029"])
def test_no_name_ends_a_line(tmp_path, end):
    """The lists that hold it could not be read again."""
    assert len(f"a{end}b".splitlines()) == 2
    with pytest.raises(InputError, match="cannot be part of a file name; rename it"):
        check_name(f"a{end}b", tmp_path, "id")
    assert check_name("a\u00a0\u3000b", tmp_path, "id")


def test_masks_where_255_is_the_object(tmp_path):
    for i in range(3):
        label = np.zeros((8, 8), np.uint8)
        label[2:5, 2:5] = 255
        write_label(tmp_path / f"{i}.png", label)
    paths = sorted(tmp_path.glob("*.png"))
    with pytest.raises(InputError, match=r"0\.png: holds 255, which is 'ignore'.*write its class"):
        images.check_classes(paths)
    label[0, 0] = 1
    write_label(paths[2], label)
    images.check_classes(paths)
    for path in paths:
        write_label(path, np.zeros((8, 8), np.uint8))
    images.check_classes(paths)  # pictures without any class


def test_colours_of_voc_at_other_indices(tmp_path):
    """A map that went through RGB and back; palettes of one's own are no fault."""
    label = np.zeros((16, 16), np.uint8)
    label[4:8], label[8:12], label[12:] = 12, 15, 255
    write_label(tmp_path / "a.png", label)
    assert (images.read_label(tmp_path / "a.png", 21) == label).all()
    Image.open(tmp_path / "a.png").convert("RGB").quantize(256).save(tmp_path / "b.png")
    with pytest.raises(
        InputError, match=r"b\.png: index \d+ has the colour \(.*of label \d+: save"
    ):
        images.read_label(tmp_path / "b.png", 21)
    own = Image.fromarray(np.minimum(label, 2))
    own.putpalette([0, 0, 0, 128, 0, 0, 10, 200, 30])
    own.save(tmp_path / "c.png")
    assert set(np.unique(images.read_label(tmp_path / "c.png", 3))) == {0, 2}


def test_replaced_images_are_noticed(data_root):
    """By size and time; with --verify by their contents, whatever their times."""
    data = DataRoot(data_root)
    ids = data.ids("train")
    before, contents = data.inputs(ids), data.inputs(ids, verify=True)
    path = data.image_path(ids[0])
    os.utime(path, (1, 1))
    assert data.inputs(ids)["images"] != before["images"]
    assert data.inputs(ids, verify=True)["contents"] == contents["contents"]
    path.write_bytes(data.image_path(ids[1]).read_bytes())
    assert data.inputs(ids, verify=True)["contents"] != contents["contents"]


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_truncated_images_are_named(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    noise = np.random.default_rng(0).integers(0, 256, (90, 90, 3)).astype(np.uint8)
    Image.fromarray(noise).save(path)
    whole = path.read_bytes()
    for keep in (0, 10, len(whole) // 2):
        path.write_bytes(whole[:keep])
        with pytest.raises(InputError, match=rf"a\.{suffix}"):
            images.read_image(path)


def test_label_maps(tmp_path):
    label = np.arange(20, dtype=np.uint8).reshape(4, 5)
    label[0, 0] = 255
    path = tmp_path / "a.png"
    images.write_label(path, label)
    assert np.array_equal(images.read_label(path, 20), label)
    assert Image.open(path).getpalette()[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0]
    with pytest.raises(InputError, match=r"label 19 is outside"):
        images.read_label(path, 19)
    with pytest.raises(InputError, match=r"5x4 pixels, image of 4x5"):
        images.read_label(path, 20, (5, 4))
    Image.fromarray(picture()).save(path)
    with pytest.raises(InputError, match="not an 8-bit"):
        images.read_label(path, 20)


def test_bundled_lists():
    counts = {"train_aug": 10582, "train": 1464, "val": 1449, "test": 1456}
    lists = {s: (REPO_LISTS / f"{s}.txt").read_text().split() for s in counts}
    assert {s: len(set(ids)) for s, ids in lists.items()} == counts
    assert set(lists["train"]) <= set(lists["train_aug"])
    assert not set(lists["val"]) & set(lists["train_aug"])
    rows = [r.split() for r in (REPO_LISTS / "image_labels.txt").read_text().splitlines()]
    assert {r[0] for r in rows} == set(lists["train_aug"]) | set(lists["val"])
    assert {name for r in rows for name in r[1:]} == set(VOC_CLASSES)


def test_labels_from_text_and_from_annotations(data_root):
    data = DataRoot(data_root)
    assert data.image_labels(["train0", "train2"]) == {"train0": [1], "train2": [3]}
    (data_root / "labels.txt").unlink()
    (data_root / "Annotations").mkdir()
    xml = "<annotation>{}</annotation>"
    objects = "".join(f"<object><name>{n}</name></object>" for n in ("bar", "disc", "bar"))
    (data_root / "Annotations/train0.xml").write_text(xml.format(objects))
    assert data.image_labels(["train0"]) == {"train0": [1, 3]}


@pytest.mark.parametrize("end", ["", "\t"])
def test_negatives_with_spaces_in_their_names(data_root, end):
    """Where any line holds a tab, all are parted by tabs; an id alone may end in one."""
    (data_root / "labels.txt").write_text(f"train 0\tdisc bar\ntrain 1{end}\ntrain 2{end}\n")
    (data_root / "classes.txt").write_text("disc bar\n")
    found = DataRoot(data_root).image_labels(["train 0", "train 1", "train 2"])
    assert found == {"train 0": [1], "train 1": [], "train 2": []}


def test_a_name_in_another_unicode_form(data_root):
    name = unicodedata.normalize("NFD", "\u00e9t\u00e9")
    (data_root / "JPEGImages/train0.jpg").rename(data_root / f"JPEGImages/{name}.jpg")
    with pytest.raises(InputError, match="another Unicode form"):
        DataRoot(data_root).image_path("\u00e9t\u00e9")


def test_a_list_of_negatives_is_known(data_root):
    """Nothing to train on, yet what there is to know of its images."""
    (data_root / "labels.txt").write_text("train0\ntrain1\ntrain2 disc\n")
    data = DataRoot(data_root)
    with pytest.raises(InputError, match="no class for any image"):
        data.image_labels(["train0", "train1"])
    assert data.known_labels(["train0", "train1"]) == {"train0": [], "train1": []}


def test_no_image_has_no_labels(data_root):
    """Neither with labels.txt nor with annotations is that an error."""
    assert DataRoot(data_root).image_labels([]) == {}
    (data_root / "labels.txt").unlink()
    assert DataRoot(data_root).image_labels([]) == {}


def test_ids_and_classes_with_spaces_and_letters(data_root):
    name = "Bild ä 1"
    (data_root / "classes.txt").write_text("disc\nred panda\n")
    (data_root / "labels.txt").write_text(f"{name}\tred panda\tdisc\n")
    (data_root / "ImageSets/Segmentation/odd.txt").write_text(f"{name}\n")
    Image.fromarray(picture()).save(data_root / "JPEGImages" / f"{name}.png")
    data = DataRoot(data_root)
    assert data.image_labels(data.ids("odd")) == {name: [1, 2]}
    assert data.image_path(name).suffix == ".png"


@pytest.mark.skipif(not (SHARED / "realvoc").is_dir(), reason="the real VOC images are not at hand")
def test_real_annotations_agree_with_the_bundled_labels():
    data = DataRoot(SHARED / "realvoc" / "VOC2012")
    rows = dict(
        line.split(maxsplit=1)
        for line in (REPO_LISTS / "image_labels.txt").read_text().splitlines()
    )
    for image_id, classes in data.image_labels(data.ids("train")).items():
        assert [VOC_CLASSES[c - 1] for c in classes] == sorted(rows[image_id].split())


def test_views_stay_joint_and_pad_as_told():
    """A mask drawn into the image comes out where the image says."""
    rng = np.random.default_rng(0)
    view = RandomView((24, 80), 48)
    mask = torch.zeros(30, 40, dtype=torch.uint8)
    mask[8:20, 5:18] = 1
    image = (mask * 200)[None].repeat(3, 1, 1)
    for _ in range(50):
        got, label, box = view(image, mask, rng)
        top, left, bottom, right = box.tolist()
        assert got.shape == (3, 48, 48) and label.shape == (48, 48)
        inside = torch.zeros(48, 48, dtype=torch.bool)
        inside[top:bottom, left:right] = True
        assert (label[~inside] == 255).all() and (label[inside] < 2).all()
        assert (got[:, ~inside] == 0).all()
        wrong = ((got[0] > 100) != (label == 1)) & inside
        assert wrong.float().mean() < 0.02  # the two interpolations differ at borders only


def test_view_sizes_follow_the_longer_side():
    view = RandomView((32, 32), 64)
    rng = np.random.default_rng(0)
    for shape, expected in (((50, 100), (16, 32)), ((100, 50), (32, 16)), ((7, 7), (32, 32))):
        _, _, box = view(torch.zeros(3, *shape, dtype=torch.uint8), None, rng)
        assert (box[2] - box[0], box[3] - box[1]) == expected


@pytest.mark.parametrize("size", [(640, 480), (644, 480), (643, 481)])
def test_large_photographs_are_decoded_at_a_fraction_of_their_size(tmp_path, size):
    """The view is that of the whole image, but for colours that libjpeg rounds."""
    data = DataRoot(write_data_root(tmp_path))
    (tmp_path / "labels.txt").write_text("train0 disc\n")
    rng = np.random.default_rng(0)
    blobs = rng.integers(0, 256, (12, 17, 3)).astype(np.uint8)
    photo = Image.fromarray(blobs).resize(size, Image.Resampling.BICUBIC)
    exif = Image.Exif()
    for turn, side in ((1, 640), (1, 320), (1, 200), (6, 80), (1, 20)):
        exif[0x0112] = turn
        photo.save(tmp_path / "JPEGImages" / "train0.jpg", quality=95, exif=exif)
        path = data.image_path("train0")
        whole, (small, found) = images.read_image(path), images.read_reduced(path, side)
        divisors = [n for n in (8, 4, 2, 1) if size[0] % n == size[1] % n == 0]
        parts = next((n for n in divisors if n * side <= size[0]), 1)
        assert small.shape[1:] == tuple(n // parts for n in whole.shape[1:])
        assert found == tuple(whole.shape[1:]) == images.image_size(path)
        label = np.zeros(images.image_size(path), np.uint8)
        label[: len(label) // 2] = 1
        write_label(tmp_path / "train0.png", label)
        view = RandomView((side, side), 64)
        views = TrainingViews(data, ["train0"], view, 0, label_folder=tmp_path)
        got, box, target = views[3]
        rng = np.random.default_rng((0, 3, 0))
        usual, marks, usual_box = view(whole, torch.from_numpy(label), rng)
        assert torch.equal(box, usual_box)
        assert (got.int() - usual.int()).abs().float().mean() < 1.2
        assert (target != marks).float().mean() < 0.02


def test_views_depend_on_seed_and_draw_alone(data_root):
    data = DataRoot(data_root)
    ids = data.ids("train")
    labels = data.image_labels(ids)
    make = [TrainingViews(data, ids, RandomView((40, 80), 64), 3, labels) for _ in range(2)]
    later = make[0][len(ids) * 5 + 2]
    for _ in range(3):
        make[1][0]
    for mine, again in zip(later, make[1][len(ids) * 5 + 2], strict=True):
        assert torch.equal(mine, again)
    assert not torch.equal(later[0], make[0][2][0])  # another epoch, another view


def test_normalize_is_exact_and_zero_outside_the_box():
    image = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    boxes = torch.tensor([[0, 0, 8, 8], [2, 1, 6, 5]])
    got = normalize(image, boxes)
    plain = image.double() / 255
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (MEAN, STD))
    expected = (plain - mean) / std
    torch.testing.assert_close(got[0].double(), expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got[1, :, 2:6, 1:5].double(), expected[1, :, 2:6, 1:5],
                               rtol=1e-5, atol=1e-5)  # fmt: skip
    outside = got[1].clone()
    outside[:, 2:6, 1:5] = 0
    assert not outside.any()


def test_pictures_with_none_of_the_classes(data_root):
    """An id alone in labels.txt: no class, a zero target."""
    path = data_root / "labels.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0].split()[0], *lines[1:]]))
    data = DataRoot(data_root)
    ids = data.ids("train")
    labels = data.image_labels(ids)
    assert labels[ids[0]] == [] and all(labels[i] for i in ids[1:])
    views = TrainingViews(data, ids, RandomView((48, 64), 48), 0, labels)
    assert views[0][2].tolist() == [0, 0, 0] and views[1][2].sum() > 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train0.jpg disc", "no line for 'train0' .it has 'train0.jpg': with an extension here"),
        ("Train0 disc", "no line for 'train0' .it has 'Train0', in another case"),
        ("train0,disc", "no line for 'train0' .is it a CSV file"),
        ("train0 Disc", "unknown class 'Disc' .it has 'disc', in another case"),
        ("train0 cafe\u0301", "unknown class .* .it has 'caf\u00e9', in another Unicode form"),
        ("train0 traffic", "unknown class 'traffic' .it has 'traffic light': .* by tabs"),
    ],
)
def test_labels_in_another_form(data_root, line, message):
    (data_root / "classes.txt").write_text("traffic light\ndisc\nbar\ncaf\u00e9\n")
    (data_root / "labels.txt").write_text(line)
    with pytest.raises(InputError, match=rf"labels\.txt: {message}"):
        DataRoot(data_root).image_labels(["train0"])
