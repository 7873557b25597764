"""tools/fetch_voc.py: every form of VOC, and downloads from a server on the loopback."""

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

from core.data.datasets import DataRoot
from core.data.images import VOC_COLOURS, read_label
from core.errors import InputError
from tools import download as downloads
from tools import fetch_voc, prepare_voc, voc_forms

import numpy as np
import pytest
from conftest import REPO, fake_python
from loopback import Server, serving
from PIL import Image
from test_prepare_voc import LABELS, SBD_ONLY, TRAIN, VAL, picture_mask, write_mat


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(downloads, "PAUSE", 0.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving() as server:
        yield server


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def write_devkit(root: Path) -> Path:
    """Three images of VOC's ids with lists, annotations and masks of train and val."""
    for folder in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for number, (image_id, classes) in enumerate(LABELS.items()):
        mask = picture_mask(number, number + 1)
        Image.new("RGB", mask.shape[::-1]).save(root / "JPEGImages" / f"{image_id}.jpg")
        objects = "".join(f"<object><name>{name}</name></object>" for name in classes)
        (root / f"Annotations/{image_id}.xml").write_text(f"<annotation>{objects}</annotation>")
        if image_id != SBD_ONLY:
            Image.fromarray(mask).save(root / "SegmentationClass" / f"{image_id}.png")
    for split, image_id in (("train", TRAIN), ("val", VAL)):
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(f"{image_id}\n")
    return root


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """An empty working directory, and published lists of three images."""
    folder = tmp_path / "lists"
    folder.mkdir()
    published = {"train": [TRAIN], "val": [VAL], "train_aug": [TRAIN, SBD_ONLY], "test": ["2008_1"]}
    for split, ids in published.items():
        (folder / f"{split}.txt").write_text("\n".join(ids) + "\n")
    rows = (" ".join([image_id, *classes]) for image_id, classes in LABELS.items())
    (folder / "image_labels.txt").write_text("\n".join(rows))
    monkeypatch.setattr(prepare_voc, "LISTS", folder)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def packed(folder: Path, form: str) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode=form) as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name)
    return data.getvalue()


@pytest.fixture
def published(tmp_path, server, monkeypatch) -> Server:
    """The server with tiny archives in place of VOC's and SBD's."""
    write_devkit(tmp_path / "made" / "voc" / "VOCdevkit" / "VOC2012")
    write_mat(
        tmp_path / f"made/sbd/benchmark_RELEASE/dataset/cls/{SBD_ONLY}.mat", picture_mask(1, 13)
    )
    (tmp_path / "made/sbd/benchmark_RELEASE/dataset/img").mkdir()
    for what, name, form in ((fetch_voc.VOC, "voc", "w"), (fetch_voc.SBD, "sbd", "w:gz")):
        old = fetch_voc.ARCHIVES[what]
        server.files[old.name] = data = packed(tmp_path / "made" / name, form)
        new = old._replace(url=f"{server.url}/{old.name}", md5=hashlib.md5(data).hexdigest())
        monkeypatch.setitem(fetch_voc.ARCHIVES, what, new)
    return server


def masks(root: Path) -> set[str]:
    return {p.stem for p in (root / "SegmentationClassAug").glob("*.png")}


def test_sums_are_torchvisions():
    voc, sbd = fetch_voc.ARCHIVES.values()
    assert (voc.name, sbd.name) == ("VOCtrainval_11-May-2012.tar", "benchmark.tgz")
    assert (len(voc.md5), len(sbd.md5)) == (32, 32)


def test_one_command(published, place):
    fetch_voc.main(["--download", "--sbd", "--jobs", "1"])
    root = place / "VOCdevkit" / "VOC2012"
    assert DataRoot(root).ids("train_aug") == [TRAIN, SBD_ONLY]
    assert masks(root) == {TRAIN, SBD_ONLY}
    assert names(place / "benchmark_RELEASE") == ["cls"]  # its images are VOC's
    assert names(place) == ["VOCdevkit", "benchmark_RELEASE"]
    assert names(place / "VOCdevkit") == ["VOC2012", "VOCtrainval_11-May-2012.tar", "benchmark.tgz"]
    published.asked.clear()
    fetch_voc.main(["--download", "--sbd", "--jobs", "1"])
    assert published.asked == []


def test_script_passes_its_options_on(tmp_path):
    environment = os.environ | fake_python(tmp_path) | {"DATA": "d", "SBD": "s"}
    command = ["bash", REPO / "scripts/0_prepare_data.sh", "--download", "--sbd", "--mirror", "u"]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    wanted = "tools/fetch_voc.py --voc d --sbd-folder s --download --sbd --mirror u"
    assert said.stdout.split() == wanted.split()


def test_mirror_comes_first_and_the_original_after_it(published, place):
    name = fetch_voc.ARCHIVES[fetch_voc.VOC].name
    fetch_voc.main(["--download", "--mirror", f"{published.url}/mirror/"])
    assert published.paths == [f"/mirror/{name}"]
    shutil.rmtree("VOCdevkit")
    published.statuses = [404]
    fetch_voc.main(["--download", "--mirror", f"{published.url}/gone"])
    assert published.paths[1:] == [f"/gone/{name}", f"/{name}"]
    assert (place / "VOCdevkit/VOC2012/JPEGImages").is_dir()


def test_tar_that_is_there_is_taken(published, place):
    name = fetch_voc.ARCHIVES[fetch_voc.VOC].name
    (place / name).write_bytes(published.files[name])
    fetch_voc.main([])
    assert published.asked == [] and masks(place / "VOCdevkit/VOC2012") == set()
    shutil.rmtree("VOCdevkit")
    (place / name).write_bytes(published.files[name][:-600])
    with pytest.raises(InputError, match=rf"rename it to {name}\.part") as caught:
        fetch_voc.main([])
    assert "\n" not in str(caught.value) and (place / name).exists()
    (place / name).rename(f"{name}.part")
    fetch_voc.main(["--download", "--archives", "."])
    assert published.asked[0].startswith("bytes=")


def test_what_is_optional_stops_nothing(published, place, capsys):
    published.files["benchmark.tgz"] = b"<html>moved</html>"
    Path("aug.zip").write_bytes(b"PK")
    fetch_voc.main(["--download", "--sbd", "--aug", "aug.zip"])
    said = capsys.readouterr()
    row = next(line for line in said.out.splitlines() if line.startswith("train "))
    assert row.split()[1:7] == ["1", "1", "1", "1", "0", "ready;"]
    lines = [line for line in said.err.splitlines() if line.startswith("left out (optional)")]
    assert len(lines) == 2 and "SBD" in lines[0] and "check sum is wrong" in lines[0]
    assert "aug.zip: no zip, or damaged" in lines[1]


def test_without_anything(place):
    with pytest.raises(InputError, match=r"VOCdevkit/VOC2012: no VOC 2012 there.*--download"):
        fetch_voc.main([])


NESTED = [
    "VOCdevkit/VOCdevkit/VOC2012",
    "VOC2012",
    "VOC2012_train_val/VOC2012_train_val",
    "VOCtrainval_11-May-2012/VOCdevkit/VOC2012",
    "VOCdevkit/VOC2012/VOCdevkit/VOC2012",
]


@pytest.mark.parametrize("nested", NESTED)
def test_devkit_is_found_where_it_was_unpacked(place, capsys, nested):
    write_devkit(place / nested)
    for other in ("VOC2012_test/VOC2012_test", "VOCdevkit/VOC2007"):  # of other pictures
        (place / other / "JPEGImages").mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(place / other / "JPEGImages/000005.jpg")
    fetch_voc.main([])
    said = capsys.readouterr().out
    if nested.startswith("VOCdevkit/VOC2012"):
        assert f"DATA={nested}" in said
    else:
        assert Path("VOCdevkit/VOC2012").resolve() == place / nested
        assert DataRoot(Path("VOCdevkit/VOC2012")).ids("train") == [TRAIN]


@pytest.mark.parametrize("inside", ["cls", "dataset/cls", "benchmark_RELEASE/dataset/cls"])
@pytest.mark.parametrize("given", ["benchmark_RELEASE", "benchmark_RELEASE/dataset"])
def test_sbd_with_and_without_dataset(place, inside, given):
    write_devkit(place / "VOCdevkit/VOC2012")
    write_mat(place / f"benchmark_RELEASE/{inside}/{SBD_ONLY}.mat", picture_mask(1, 13))
    fetch_voc.main(["--sbd-folder", given])
    assert masks(place / "VOCdevkit/VOC2012") == {TRAIN, SBD_ONLY}


def png(mask: np.ndarray, form: str) -> bytes:
    if form == "grey":
        image = Image.fromarray(mask)
    elif form == "palette":
        image = Image.fromarray(mask)
        image.putpalette(VOC_COLOURS.ravel().tolist())
    else:
        image = Image.fromarray(VOC_COLOURS[mask])
        if form == "rgba":
            image = image.convert("RGBA")
        elif form == "saved anew":
            image = image.quantize(8)
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


@pytest.mark.parametrize("form", ["grey", "palette", "rgb", "rgba", "saved anew"])
@pytest.mark.parametrize("packing", ["folder", "zip"])
def test_aug_masks(place, form, packing):
    root = write_devkit(place / "VOCdevkit/VOC2012")
    mask = picture_mask(1, 13)
    mask[0] = 255
    inside = {f"aug/SegmentationClassAug/{SBD_ONLY}.png": png(mask, form), "aug/2009_1.png": b""}
    if packing == "zip":
        with zipfile.ZipFile("aug.zip", "w") as archive:
            for name, data in (*inside.items(), (f"__MACOSX/._{SBD_ONLY}.png", b"")):
                archive.writestr(name, data)
    else:
        for name, data in inside.items():
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_bytes(data)
    fetch_voc.main(["--aug", "aug.zip" if packing == "zip" else "aug"])
    assert masks(root) == {SBD_ONLY}
    assert np.array_equal(read_label(root / f"SegmentationClassAug/{SBD_ONLY}.png", 21), mask)


def test_aug_masks_that_cannot_be_used(place, capsys):
    root = write_devkit(place / "VOCdevkit/VOC2012")
    Path("aug").mkdir()
    for image_id, data in (
        (TRAIN, png(picture_mask(0, 21), "grey")),
        (SBD_ONLY, png(picture_mask(5, 1), "grey")),
        (VAL, png(picture_mask(2, 1), "rgb").replace(b"IDAT", b"XDAT")),
    ):
        (Path("aug") / f"{image_id}.png").write_bytes(data)
    fetch_voc.main(["--aug", "aug"])
    assert masks(root) == set()
    assert "aug: 3 masks cannot be used, the first: aug/2007_000032.png: label 21 is" in (
        capsys.readouterr().err
    )
    rgb = io.BytesIO()
    Image.new("RGB", (4, 4), (1, 2, 3)).save(rgb, "PNG")
    with pytest.raises(InputError, match=r"colour \(1, 2, 3\) is none of VOC's"):
        voc_forms.as_label(rgb.getvalue(), "a.png")


@pytest.mark.parametrize(
    ("at", "value", "message"),
    [(6, 1, "encrypted"), (8, 9, "compression"), (60, 255, "unpacked")],
    ids=["encrypted", "deflate64", "damaged"],
)
def test_aug_zips_that_cannot_be_unpacked(place, capsys, at, value, message):
    root = write_devkit(place / "VOCdevkit/VOC2012")
    with zipfile.ZipFile("aug.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{SBD_ONLY}.png", png(picture_mask(1, 13), "grey"))
    data = bytearray(Path("aug.zip").read_bytes())
    data[at] = value
    if at < 60:  # what the central directory says of it
        data[data.find(b"PK\1\2") + at + 2] = value
    Path("aug.zip").write_bytes(data)
    fetch_voc.main(["--aug", "aug.zip"])
    assert masks(root) == set()
    said = capsys.readouterr().err
    assert f"aug.zip/{SBD_ONLY}.png: cannot be unpacked (" in said and message in said


@pytest.mark.parametrize("kind", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_aug_zips_of_other_kinds_that_are_damaged(place, capsys, kind):
    write_devkit(place / "VOCdevkit/VOC2012")
    with zipfile.ZipFile("aug.zip", "w", kind) as archive:
        archive.writestr(f"{SBD_ONLY}.png", png(picture_mask(1, 13), "grey"))
    data = bytearray(Path("aug.zip").read_bytes())
    data[55:75] = bytes(20)
    Path("aug.zip").write_bytes(data)
    fetch_voc.main(["--aug", "aug.zip"])
    assert f"aug.zip/{SBD_ONLY}.png: cannot be unpacked (" in capsys.readouterr().err


def test_deeplab_lists(place):
    root = write_devkit(place / "VOCdevkit/VOC2012")
    pairs = (f"/JPEGImages/{i}.jpg /SegmentationClassAug/{i}.png" for i in (TRAIN, SBD_ONLY))
    (root / "ImageSets/Segmentation/train_aug.txt").write_text("\n".join(pairs) + "\n")
    assert DataRoot(root).ids("train_aug") == [TRAIN, SBD_ONLY]
    (root / "ImageSets/Segmentation/own.txt").write_text("my JPEGImages 7\n")
    assert DataRoot(root).ids("own") == ["my JPEGImages 7"]
    (root / "ImageSets/Segmentation/bad.txt").write_text("/JPEGImages/../x.jpg\n")
    with pytest.raises(InputError, match="cannot be part of a file name"):
        DataRoot(root).ids("bad")


@pytest.mark.parametrize("boxed", [True, False])
def test_parquet(place, boxed):
    pytest.importorskip("pyarrow")
    import pyarrow as pa
    from pyarrow import parquet

    devkit, rows = write_devkit(place / "devkit"), {"id": [], "image": [], "mask": []}
    for image_id in (TRAIN, VAL):
        picture = (devkit / f"JPEGImages/{image_id}.jpg").read_bytes()
        mask = png(np.array(Image.open(devkit / f"SegmentationClass/{image_id}.png")), "rgb")
        rows["id"].append(image_id)
        for name, data in (("image", picture), ("mask", mask)):
            rows[name].append({"bytes": data, "path": None} if boxed else data)
    Path("hub/data").mkdir(parents=True)
    parquet.write_table(pa.table(rows), "hub/data/train-0.parquet")
    fetch_voc.main(["--parquet", "hub"])
    data = DataRoot(place / "VOCdevkit/VOC2012")
    for split, image_id in (("train", TRAIN), ("val", VAL)):
        assert data.ids(split) == [image_id]
        mask = read_label(data.mask_path(image_id), 21)
        assert np.array_equal(mask, read_label(devkit / f"SegmentationClass/{image_id}.png", 21))
    assert data.image_labels([TRAIN]) == {TRAIN: [1, 15]}
    parquet.write_table(pa.table({"pixels": [1]}), "hub/data/train-0.parquet")
    with pytest.raises(InputError, match=r"has the columns pixels; wanted: id, image, mask"):
        fetch_voc.main(["--parquet", "hub"])
    Path("hub/data/train-0.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match="damaged or no parquet"):
        fetch_voc.main(["--parquet", "hub"])


def test_parquet_says_what_it_needs(place, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(InputError, match="pip install pyarrow"):
        fetch_voc.main(["--parquet", "hub"])
