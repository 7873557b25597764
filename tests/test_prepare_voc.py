"""tools/prepare_voc.py: a tiny devkit and SBD with everything right, then one thing wrong each."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from core.data.datasets import DataRoot
from core.data.images import read_label, voc_palette, write_label
from core.errors import InputError
from core.run.main import run_main
from tools import prepare_voc

import numpy as np
import pytest
from PIL import Image

TRAIN, SBD_ONLY, VAL = "2007_000032", "2008_000008", "2007_000033"  # real ids, other pictures
LABELS = {TRAIN: ["aeroplane", "person"], SBD_ONLY: ["horse", "person"], VAL: ["aeroplane"]}
REAL = Path(__file__).resolve().parents[2] / "shared" / "realvoc" / "VOC2012"


def picture_mask(number: int, value: int) -> np.ndarray:
    mask = np.zeros((20 + number, 30), np.uint8)
    mask[5:10, 5:20] = value
    return mask


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def write_mat(path: Path, mask: np.ndarray) -> None:
    """A file as SBD's: a MATLAB struct GTcls with a field Segmentation."""
    savemat = pytest.importorskip("scipy.io").savemat
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"GTcls": {"Segmentation": mask, "CategoriesPresent": np.unique(mask)}})


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """A devkit: lists train and val as in VOC's tar, masks of those, three images."""
    root = tmp_path / "VOC2012"
    for folder in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for number, (image_id, names) in enumerate(LABELS.items()):
        height, width = picture_mask(number, 0).shape
        Image.new("RGB", (width, height)).save(root / "JPEGImages" / f"{image_id}.jpg")
        objects = "".join(f"<object><name>{name}</name></object>" for name in names)
        xml = f"<annotation>{objects}</annotation>"
        (root / "Annotations" / f"{image_id}.xml").write_text(xml)
    for split, image_id, number in (("train", TRAIN, 0), ("val", VAL, 2)):
        write_label(root / "SegmentationClass" / f"{image_id}.png", picture_mask(number, 255))
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(f"{image_id}\n")
    return root


@pytest.fixture
def lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Published lists of the size of the devkit."""
    folder = tmp_path / "lists"
    folder.mkdir()
    published = {"train": [TRAIN], "val": [VAL], "train_aug": [TRAIN, SBD_ONLY], "test": ["2008_1"]}
    for split, ids in published.items():
        (folder / f"{split}.txt").write_text("\n".join(ids) + "\n")
    rows = (" ".join([image_id, *names]) for image_id, names in LABELS.items())
    (folder / "image_labels.txt").write_text("\n".join(rows))
    monkeypatch.setattr(prepare_voc, "LISTS", folder)
    return folder


def run(root: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> dict:
    """Run the tool; its report."""
    report = root.parent / "report.json"
    arguments = ["--voc", str(root), "--json", str(report), *options]
    monkeypatch.setattr(sys, "argv", ["prepare_voc.py", *arguments])
    prepare_voc.main()
    return json.loads(report.read_text())


def test_sbd_masks_and_lists(voc: Path, lists: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sbd = voc.parent / "sbd"
    write_mat(sbd / "cls" / f"{TRAIN}.mat", picture_mask(0, 1))  # VOC's own mask wins over it
    write_mat(sbd / "cls" / f"{SBD_ONLY}.mat", picture_mask(1, 13))
    report = run(voc, monkeypatch, "--sbd", str(sbd))
    folder = voc / "SegmentationClassAug"
    assert {p.name for p in folder.iterdir()} == {f"{TRAIN}.png", f"{SBD_ONLY}.png"}
    for image_id, mask in ((TRAIN, picture_mask(0, 255)), (SBD_ONLY, picture_mask(1, 13))):
        assert np.array_equal(read_label(folder / f"{image_id}.png", 21), mask)
        with Image.open(folder / f"{image_id}.png") as image:
            assert image.mode == "P" and image.getpalette()[:63] == voc_palette()[:63]
    assert DataRoot(voc).ids("train_aug") == [TRAIN, SBD_ONLY]
    row = report["splits"]["train_aug"]
    assert (row["listed"], row["images"], row["masks"], row["labels"]) == (2, 2, 2, 2)
    states = {split: row["state"] for split, row in report["splits"].items()}
    assert states == {"train_aug": "ready", "train": "ready", "val": "ready", "test": "absent"}
    assert not (voc / "ImageSets" / "Segmentation" / "test.txt").exists()
    before = contents(voc)
    assert run(voc, monkeypatch, "--sbd", str(sbd))["problems"] == report["problems"] == []
    assert contents(voc) == before


def test_own_list_is_kept(
    voc: Path, lists: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = voc / "ImageSets" / "Segmentation" / "train_aug.txt"
    own.write_text(f"{TRAIN}\n{VAL}\n")
    run(voc, monkeypatch)
    assert own.read_text() == f"{TRAIN}\n{VAL}\n"
    assert "1 published ids are not in it, 1 others are" in capsys.readouterr().out


def test_missing_is_named_and_partial_is_fine(
    voc: Path, lists: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (voc / "JPEGImages" / f"{VAL}.jpg").unlink()
    (voc / "Annotations" / f"{SBD_ONLY}.xml").unlink()
    (voc / "SegmentationClass" / f"{TRAIN}.png").unlink()
    report = run(voc, monkeypatch)
    states = {split: row["state"] for split, row in report["splits"].items()}
    assert states["train_aug"] == states["val"] == "incomplete"
    assert states["train"].startswith("ready, but")
    out = capsys.readouterr().out
    for name in (f"{VAL}.jpg", f"{SBD_ONLY}.xml", f"{TRAIN}.png", "VOCtrainval", "SBD"):
        assert name in out


def test_other_labels_than_published_are_told(
    voc: Path, lists: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (lists / "image_labels.txt").write_text(f"{VAL} cat\n")
    problems = run(voc, monkeypatch)["problems"]
    differing = [p["message"] for p in problems if p["kind"] == "differs"]
    assert differing == [f"{VAL}: labels aeroplane, published cat"]


def damage(voc: Path, sbd: Path, kind: str) -> str:
    """Break one file; what the output must name."""
    jpeg, mask = voc / "JPEGImages" / f"{VAL}.jpg", voc / "SegmentationClass" / f"{VAL}.png"
    mat, xml = sbd / "cls" / f"{SBD_ONLY}.mat", voc / "Annotations" / f"{VAL}.xml"
    if kind == "jpeg":
        jpeg.write_bytes(jpeg.read_bytes()[:300])
        return jpeg.name
    if kind == "mask size":
        write_label(mask, picture_mask(3, 1))
    elif kind == "mask label":
        write_label(mask, picture_mask(2, 21))
    elif kind == "xml":
        xml.write_text("<annotation><object>")
        return xml.name
    elif kind == "class":
        xml.write_text(xml.read_text().replace("aeroplane", "zebra"))
        return "zebra"
    elif kind == "mat":
        mat.write_bytes(mat.read_bytes()[:150])
        return mat.name
    elif kind == "mat size":
        write_mat(mat, picture_mask(5, 1))
        return mat.name
    elif kind == "mat label":
        write_mat(mat, picture_mask(1, 21))
        return mat.name
    return mask.name


KINDS = ["jpeg", "mask size", "mask label", "xml", "class", "mat", "mat size", "mat label"]


@pytest.mark.parametrize("kind", KINDS)
def test_broken_files(
    voc: Path,
    lists: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    sbd = voc.parent / "sbd"
    write_mat(sbd / "cls" / f"{SBD_ONLY}.mat", picture_mask(1, 13))
    named = damage(voc, sbd, kind)
    with pytest.raises(InputError, match=r"broken files \(1\)") as caught:
        run(voc, monkeypatch, "--sbd", str(sbd))
    assert "\n" not in str(caught.value)
    lines = [s for s in capsys.readouterr().out.splitlines() if s.startswith("broken: ")]
    assert len(lines) == 1 and named in lines[0]
    made = {p.name for p in (voc / "SegmentationClassAug").iterdir()}  # nothing half-written
    assert made == {f"{TRAIN}.png"} if "mat" in kind else {f"{TRAIN}.png", f"{SBD_ONLY}.png"}


def test_mat_of_another_kind_is_refused(tmp_path: Path) -> None:
    savemat = pytest.importorskip("scipy.io").savemat
    for name, value in (("a", {"x": 1}), ("b", {"GTcls": {"Segmentation": "text"}})):
        savemat(tmp_path / f"{name}.mat", value)
        with pytest.raises(InputError, match=f"{name}.mat: damaged or not an SBD mask"):
            prepare_voc.read_sbd_mask(tmp_path / f"{name}.mat", 21)
    for label in (-1, 21):
        write_mat(tmp_path / "c.mat", np.array([[0, 20, label]], np.int16))
        with pytest.raises(InputError, match=rf"c.mat: label {label} is outside 0\.\.20"):
            prepare_voc.read_sbd_mask(tmp_path / "c.mat", 21)


def test_nothing_usable(voc: Path, lists: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (voc / "JPEGImages").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="no split is complete"):
        run(voc, monkeypatch)


def test_read_only_devkit(voc: Path, lists: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, _: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(prepare_voc.files, "write_text", refuse)
    with pytest.raises(InputError, match="cp -rs"):
        run(voc, monkeypatch)


@pytest.mark.parametrize("option", ["--voc", "--sbd"])
def test_error_is_one_line(
    voc: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    option: str,
) -> None:
    before = contents(voc)
    with pytest.raises(SystemExit) as stop:
        run_main(lambda: run(voc, monkeypatch, option, str(voc / "none")))
    message = capsys.readouterr().err.strip()
    assert stop.value.code == 1
    assert "none" in message and "no such directory" in message and "\n" not in message
    assert contents(voc) == before


@pytest.mark.skipif(not REAL.is_dir(), reason="needs the real images beside the project")
def test_real_partial_devkit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(REAL.rglob("*"))
    report = tmp_path / "report.json"
    arguments = ["--voc", str(REAL), "--jobs", "1", "--json", str(report)]
    monkeypatch.setattr(sys, "argv", ["prepare_voc.py", *arguments])
    prepare_voc.main()
    rows = json.loads(report.read_text())["splits"]
    assert {s: rows[s]["images"] for s in rows} == {"train_aug": 100, "train": 60, "val": 20} | {
        "test": 0
    }
    assert [rows[s]["masks"] for s in ("train_aug", "train", "val")] == [100, 60, 20]
    assert all(rows[s]["state"] == "ready" for s in ("train_aug", "train", "val"))
    out = capsys.readouterr().out
    assert "10482 published ids are not in it" in out and "its 1456 images" in out
    assert sorted(REAL.rglob("*")) == before
