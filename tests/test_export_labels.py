"""tools/export_labels.py: what each form says, filled in again, is the label map."""

import json
import os
import shutil
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

from core.data.datasets import DataRoot
from core.data.images import IGNORE, write_label
from core.errors import InputError
from core.run import artefacts
from tools import export_labels
from tools.polygons import area, polygons, run_lengths

import numpy as np
import pytest
from conftest import write_data_root

FORMS = ("coco", "coco-rle", "cvat", "labelme", "labelstudio")


def filled(ring: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The pixels whose centre is within a ring: an odd number of edges is to the right of it."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    inside = np.zeros(size, bool)
    for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, 0), strict=True):
        if y0 != y1:
            at = x0 + (y - y0) * (x1 - x0) / (y1 - y0)
            inside ^= ((y0 > y) != (y1 > y)) & (x < at)
    return inside


def blobs(seed: int, size: tuple[int, int] = (23, 31)) -> np.ndarray:
    """A ragged mask with holes, islands in holes, single pixels and parts at the border."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((size[0] // 4 + 1, size[1] // 4 + 1)) < 0.6
    mask = np.kron(coarse, np.ones((4, 4), bool))[: size[0], : size[1]]
    return mask ^ (rng.random(size) < 0.08)


@pytest.mark.parametrize("seed", range(20))
def test_polygons_filled_are_the_mask(seed):
    mask = blobs(seed)
    rings = polygons(mask)
    assert np.array_equal(np.logical_xor.reduce([filled(r, mask.shape) for r in rings]), mask)
    assert sum(map(area, rings)) == mask.sum()
    assert all(len(ring) >= 4 for ring in rings)


def test_a_square_has_four_points():
    mask = np.zeros((8, 9), bool)
    mask[2:5, 3:7] = True
    assert sorted(polygons(mask)[0].tolist()) == [[3, 2], [3, 5], [7, 2], [7, 5]]
    assert polygons(np.zeros((3, 3), bool)) == []


def test_tolerance_saves_points():
    y, x = np.mgrid[:80, :80]
    disc = (y - 40) ** 2 + (x - 40) ** 2 < 900
    exact, fewer = polygons(disc)[0], polygons(disc, 1.0)[0]
    assert len(fewer) < len(exact) / 3
    assert (filled(fewer, disc.shape) ^ disc).sum() < 0.05 * disc.sum()


@pytest.mark.parametrize("seed", range(5))
def test_run_lengths(seed):
    mask = blobs(seed)
    counts = run_lengths(mask)
    values = np.repeat(np.arange(len(counts)) % 2, counts).astype(bool)
    assert np.array_equal(values.reshape(mask.shape[::-1]).T, mask)
    assert run_lengths(np.ones((2, 3))) == [0, 6] and run_lengths(np.zeros((2, 3))) == [6]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data root whose masks are ragged, one of them without any class."""
    root = write_data_root(tmp_path / "data", n_train=3, n_val=0)
    for number in range(3):
        label = np.zeros((48, 64), np.uint8)
        for c in (1, 2, 3) if number else ():
            label[blobs(number * 3 + c, (48, 64))] = c
        label[20:22] = IGNORE if number else 0
        write_label(root / "SegmentationClass" / f"train{number}.png", label)
    return root


def as_maps(out: Path, form: str, classes: list[str], size: tuple[int, int]) -> dict:
    """The label maps that a file of a form says: file name -> (H, W)."""
    found: dict[str, np.ndarray] = {}

    def put(name: str, label: str, rings: list[np.ndarray]) -> None:
        inside = np.logical_xor.reduce([filled(ring, size) for ring in rings])
        assert not (found[name][inside]).any(), "two classes at a pixel"
        found[name][inside] = classes.index(label) + 1

    if form == "labelme":
        for path in out.iterdir():
            made = json.loads(path.read_text())
            assert (path.parent / made["imagePath"]).is_file()
            assert (made["imageHeight"], made["imageWidth"]) == size
            name = Path(made["imagePath"]).name
            found[name] = np.zeros(size, np.uint8)
            for shape in made["shapes"]:
                put(name, shape["label"], [np.array(shape["points"])])
    elif form == "cvat":
        tree = ElementTree.parse(out).getroot()
        assert [e.text for e in tree.findall("meta/task/labels/label/name")] == classes
        for image in tree.findall("image"):
            found[image.get("name")] = np.zeros(size, np.uint8)
            for shape in image.findall("polygon"):
                pairs = [p.split(",") for p in shape.get("points").split(";")]
                put(image.get("name"), shape.get("label"), [np.array(pairs, float)])
    elif form == "labelstudio":
        for task in json.loads(out.read_text()):
            name = unquote(task["data"]["image"].removeprefix("/local/"))
            found[name] = np.zeros(size, np.uint8)
            for each in task["predictions"][0]["result"]:
                assert (each["original_height"], each["original_width"]) == size
                ring = np.array(each["value"]["points"]) / 100 * np.array(size[::-1])
                put(name, each["value"]["polygonlabels"][0], [ring])
    else:
        made = json.loads(out.read_text())
        names = {image["id"]: image["file_name"] for image in made["images"]}
        found |= {name: np.zeros(size, np.uint8) for name in names.values()}
        labels = {category["id"]: category["name"] for category in made["categories"]}
        for each in made["annotations"]:
            shape, label = each["segmentation"], labels[each["category_id"]]
            if form == "coco":
                rings = [np.array(ring).reshape(-1, 2) for ring in shape]
                put(names[each["image_id"]], label, rings)
            else:
                values = np.repeat(np.arange(len(shape["counts"])) % 2, shape["counts"])
                inside = values.reshape(size[::-1]).T == 1
                found[names[each["image_id"]]][inside] = classes.index(label) + 1
            where = found[names[each["image_id"]]] == each["category_id"]
            x, y, width, height = each["bbox"]
            assert where.sum() == each["area"]
            assert not where[:y].any() and where[y].any() and where[y + height - 1].any()
            assert not where[:, :x].any() and where[:, x + width - 1].any()
    return found


@pytest.mark.parametrize("form", FORMS)
def test_every_form_says_the_label_maps(root, tmp_path, form):
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "new").symlink_to("far/away")
    data, out = DataRoot(root), tmp_path / "new" / f"out.{form}"
    for folder, ending in (("JPEGImages", "jpg"), ("SegmentationClass", "png")):
        (root / folder / f"train2.{ending}").rename(root / folder / f"a 50%20b.{ending}")
    labels = root / "SegmentationClass"
    arguments = [labels, "--data", root, "--form", form, "--out", out, "--tolerance", 0]
    export_labels.main([str(a) for a in (*arguments, "--prefix", "/local/")])
    found = as_maps(out, form, data.classes, (48, 64))
    assert sorted(found) == ["a 50%20b.jpg", "train0.jpg", "train1.jpg"]
    for name, label in found.items():
        mask = export_labels.images.read_label(labels / f"{Path(name).stem}.png", 4)
        assert np.array_equal(label, np.where(mask == IGNORE, 0, mask))
    with pytest.raises(InputError, match="is there already"):
        export_labels.main([str(a) for a in arguments])


@pytest.mark.filterwarnings("ignore:__array__")
@pytest.mark.parametrize("form", ["coco", "coco-rle"])
def test_pycocotools_reads_it(root, tmp_path, form):
    coco = pytest.importorskip("pycocotools.coco")
    out = tmp_path / "out.json"
    arguments = [root / "SegmentationClass", "--data", root, "--form", form, "--out", out]
    export_labels.main([str(a) for a in (*arguments, "--tolerance", 0)])
    made = coco.COCO(str(out))
    for image in made.loadImgs(made.getImgIds()):
        path = root / "SegmentationClass" / f"{Path(image['file_name']).stem}.png"
        label, wrong = export_labels.images.read_label(path, 4), 0
        for each in made.loadAnns(made.getAnnIds(image["id"])):
            wrong += (made.annToMask(each) != (label == each["category_id"])).sum()
        assert wrong <= (0 if form == "coco-rle" else 0.1 * label.size)


def test_a_run_brings_its_classes(root, tmp_path, capsys):
    labels, pictures = tmp_path / "pseudo", root / "JPEGImages"
    (root / "SegmentationClass").rename(labels)
    made = {"stage": "x", "holds": "labels", "finished": True, "classes": ["a", "b b", "<c>"]}
    made["digest"] = artefacts.seal(labels, [f"train{i}.png" for i in range(3)])
    (labels / "run.json").write_text(json.dumps(made))
    out = tmp_path / "a.xml"
    export_labels.main([str(labels), "--form", "cvat", "--out", str(out)])
    assert {e.get("label") for e in ElementTree.parse(out).iter("polygon")} == {"a", "b b", "<c>"}
    assert "note: pictures not given: they are named <id>.jpg" in capsys.readouterr().err
    (pictures / "train2.png").touch()
    command = [str(labels), "--form", "coco", "--out", str(tmp_path / "b.json"), "--pictures"]
    with pytest.raises(InputError, match=r"train2\.png: train2\.jpg has the same id"):
        export_labels.main([*command, str(pictures)])
    (pictures / "train2.png").unlink()
    (pictures / "train1.jpg").unlink()
    with pytest.raises(InputError, match=r"train1\.jpg: no such picture"):
        export_labels.main([*command, str(pictures)])
    with pytest.raises(InputError, match="made for other classes"):
        export_labels.main([*command[:-1], "--data", str(root)])
    assert not (tmp_path / "b.json").exists()


def test_half_an_export_is_none(root, tmp_path):
    labels, out = root / "SegmentationClass", tmp_path / "out"
    last = sorted(labels.iterdir())[-1]
    right = last.read_bytes()
    write_label(last, np.zeros((3, 4), np.uint8))
    command = [str(labels), "--data", str(root), "--form", "labelme", "--out", str(out)]
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=last.name):
        export_labels.main(command)
    assert sorted(tmp_path.iterdir()) == before
    last.write_bytes(right)
    export_labels.main(command)


def test_a_path_that_json_cannot_hold(root, tmp_path):
    folder = tmp_path / os.fsdecode(b"l\xfcbeck")  # of Latin-1
    shutil.copytree(root, folder)
    command = [str(folder / "SegmentationClass"), "--data", str(folder), "--form", "labelme"]
    with pytest.raises(InputError, match="a path that is not UTF-8; rename its folders"):
        export_labels.main([*command, "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", ["nothing", "no labels", "no classes"])
def test_what_is_not_there_is_said(root, tmp_path, what):
    folder = tmp_path / "empty"
    if what != "nothing":
        folder.mkdir()
    if what == "no classes":
        write_label(folder / "a.png", np.zeros((3, 4), np.uint8))
    words = {"nothing": "no such directory", "no labels": r"holds no <id>\.png"}
    with pytest.raises(InputError, match=words.get(what, "give --data")):
        export_labels.main([str(folder), "--form", "coco", "--out", str(tmp_path / "a.json")])
