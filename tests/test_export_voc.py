"""tools/export_voc.py: the archive's names, palette and bytes, and everything it refuses."""

from __future__ import annotations

import gzip
import io
import sys
import tarfile
from pathlib import Path

from core.data.images import voc_palette
from core.errors import InputError
from core.files import write_json
from core.run.main import run_main
from tools import export_voc

import numpy as np
import pytest
from PIL import Image

IDS = ["2008_000001", "2008_000002", "2008_000003"]
INSIDE = "results/VOC2012/Segmentation/comp6_mini_cls"


def label_map(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 21, (12 + number, 20), dtype=np.uint8)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data root with a split "mini" and grey label maps in `predictions`."""
    root = tmp_path / "data"
    for folder in ("JPEGImages", "ImageSets/Segmentation", "predictions"):
        (root / folder).mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "mini.txt").write_text("\n".join(IDS))
    for number, image_id in enumerate(IDS):
        Image.new("RGB", (20, 12 + number)).save(root / "JPEGImages" / f"{image_id}.jpg")
        Image.fromarray(label_map(number)).save(root / "predictions" / f"{image_id}.png")
    return root


def export(root: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> Path:
    out = root.parent / "archives" / "mini.tar.gz"
    arguments = ["--predictions", str(root / "predictions"), "--data", str(root)]
    arguments += ["--split", "mini", "--out", str(out), *options]
    monkeypatch.setattr(sys, "argv", ["export_voc.py", *arguments])
    export_voc.main()
    return out


def test_archive(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = export(data, monkeypatch)
    with tarfile.open(out) as archive:
        assert archive.getnames() == [f"{INSIDE}/{i}.png" for i in IDS]
        for number, image_id in enumerate(IDS):
            png = archive.extractfile(f"{INSIDE}/{image_id}.png").read()
            with Image.open(io.BytesIO(png)) as image:
                assert image.mode == "P" and image.getpalette()[:63] == voc_palette()[:63]
                assert np.array_equal(np.asarray(image), label_map(number))
    assert [p.name for p in out.parent.iterdir()] == [out.name]


def test_same_maps_same_bytes(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = export(data, monkeypatch).read_bytes()
    for number, image_id in enumerate(IDS):  # other files, the same labels: palette, time
        image = Image.fromarray(label_map(number))
        image.putpalette(voc_palette())
        image.save(data / "predictions" / f"{image_id}.png")
    assert export(data, monkeypatch, "--out", str(data / "b.tgz")).read_bytes() == first


def test_the_published_list_comes_first(data: Path) -> None:
    assert len(export_voc.split_ids("test", None)) == 1456
    assert export_voc.split_ids("mini", export_voc.DataRoot(data)) == IDS


def damage(root: Path, kind: str) -> str:
    """Make one thing wrong; what the message must name."""
    path = root / "predictions" / f"{IDS[1]}.png"
    label = label_map(1)
    if kind == "missing":
        path.unlink()
        return IDS[1]
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:60])
        return path.name
    if kind == "extra":
        path = path.with_name("2009_000009.png")
    elif kind == "unfinished":
        write_json(root / "predictions" / "run.json", {"stage": "predict", "finished": False})
        return "not finished"
    label[3, 3] = {"ignore": 255, "range": 21}.get(kind, 0)
    Image.fromarray(label[:-1] if kind == "size" else label).save(path)
    return path.name.removesuffix(".png")


KINDS = ["missing", "extra", "size", "ignore", "range", "truncated", "unfinished"]


@pytest.mark.parametrize("kind", KINDS)
def test_refusals_leave_nothing(data: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    named = damage(data, kind)
    with pytest.raises(InputError, match=named) as caught:
        export(data, monkeypatch)
    assert "\n" not in str(caught.value)
    assert not list(data.parent.glob("archives/*"))


def test_other_suffix_is_refused(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"\.tgz"):
        export(data, monkeypatch, "--out", str(data / "mini.zip"))


def test_another_file_is_not_replaced(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = export(data, monkeypatch)
    export(data, monkeypatch)  # our own is
    out.write_bytes(gzip.compress(b"my only backup"))
    with pytest.raises(InputError, match="is there already, and none of this tool's"):
        export(data, monkeypatch)
    with tarfile.open(out, "w:gz") as archive:
        archive.add(data / "predictions", "VOCdevkit")
    before = out.read_bytes()
    with pytest.raises(InputError, match="is there already, and none of this tool's"):
        export(data, monkeypatch)
    assert out.read_bytes() == before


def test_error_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    arguments = ["--predictions", str(tmp_path / "none"), "--out", str(tmp_path / "a.tgz")]
    monkeypatch.setattr(sys, "argv", ["export_voc.py", *arguments])
    with pytest.raises(SystemExit) as stop:
        run_main(export_voc.main, export_voc.get_args_parser)
    message = capsys.readouterr().err.strip()
    assert stop.value.code == 1
    assert message.startswith("error: ") and "none: no such directory" in message
    assert "\n" not in message and not any(tmp_path.iterdir())
