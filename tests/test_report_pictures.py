"""The pictures of tools/report.py: galleries and the overview, on runs made by hand."""

from __future__ import annotations

import base64
import io
import re
from argparse import Namespace
from pathlib import Path

import predict
from core.data.datasets import DataRoot
from core.data.images import write_label
from tools import report
from tools.reporting import charts, gallery
from tools.reporting.collect import collect
from tools.reporting.pictures import Album, Cell, albums

import matplotlib
import numpy as np
import pytest
from PIL import Image
from report_runs import make, write_demo, write_run


@pytest.fixture
def demo(data_root: Path, tmp_path: Path) -> Path:
    write_demo(tmp_path / "demo", data_root)
    return tmp_path / "demo"


def test_the_gallery_is_ordered_by_iou(demo, tmp_path):
    page, source, _ = make(demo, out=tmp_path / "out")
    order = [words for words in page.words if re.fullmatch(r"train\d", words)]
    assert order[:2] == ["train0", "train1"] and order[-1] == "train7"
    assert "best 100" in page.text and "worst disc" in page.text
    assert any(name == "data-classes" for _, name, _ in page.attributes)
    uri = re.search(r'src="data:image/jpeg;base64,([^"]+)"', source)[1]
    assert max(Image.open(io.BytesIO(base64.b64decode(uri))).size) <= 150


def test_the_overview_shows_every_step(demo, tmp_path):
    make(demo, out=tmp_path / "out", more="--images 0 --per-class 0 --side 64 --overview 3")
    picture = Image.open(tmp_path / "out" / "overview.png")
    # image, truth, two CAMs, walk, CRF; three lines, and one of two val images side by side
    assert picture.size == (6 * 64, 4 * 48 + 6 * 22 + 50)
    (family,) = collect([demo], [])
    args = report.get_args_parser().parse_args([str(demo), "--out", str(tmp_path / "out")])
    titles = [album.titles for album in albums(family, args, [])]
    assert titles == [
        ["image", "ground truth", "plain CAM", "Puzzle-CAM", "+ random walk", "+ dense CRF"],
        ["image", "ground truth", "segmentation"],
    ]


def test_the_overview_segments_what_was_not_predicted(demo, tmp_path, monkeypatch):
    (demo / "puzzle" / "segmentation").mkdir()
    (demo / "puzzle" / "segmentation" / "model.pt").touch()
    settings = {"scales": [0.5, 1.0], "crf": False}
    write_run(demo / "puzzle" / "predictions", "predict", settings=settings)

    def segment(argv: list[str]) -> None:
        args = predict.get_args_parser().parse_args(argv)
        assert args.scales == settings["scales"] and not args.crf
        assert args.checkpoint == demo / "puzzle" / "segmentation" / "model.pt"
        args.out.mkdir(parents=True)
        for picture in args.pictures:
            write_label(args.out / f"{picture.stem}.png", np.full((48, 64), 2, np.uint8))

    monkeypatch.setattr(predict, "main", segment)
    monkeypatch.setattr(gallery, "draw", lambda lines, *_: drawn.extend(lines))
    drawn: list[list[gallery.Place]] = []
    make(demo, out=tmp_path / "out", more="--images 0 --per-class 0 --overview 2")
    title, caption, cell = drawn[0][-1]
    assert (title, caption) == ("segmentation", f"IoU {cell.iou:.0f}")
    assert [len(line) for line in drawn] == [7, 7, 6] and (cell.label == 2).all()


def test_without_masks_pictures_are_a_sample(demo, data_root, tmp_path):
    for mask in (data_root / "SegmentationClass").iterdir():
        mask.unlink()
    for scores in demo.glob("*/*.json"):
        scores.unlink()
    page, _, _ = make(demo, out=tmp_path / "out", more="--ids train1 --threshold 0.5 --side 64")
    assert "a sample; there is no ground truth" in page.text and "IoU" not in page.text
    assert "Nothing is scored" in page.text and "AffinityNet" not in page.text
    assert (tmp_path / "out" / "overview.png").exists()


def test_damaged_pictures_are_named_and_left_out(demo, tmp_path, capsys):
    (demo / "puzzle" / "pseudo" / "train3.png").write_bytes(b"no picture")
    (demo / "puzzle" / "rw" / "train0.npz").write_bytes(b"no scores")
    page, _, _ = make(demo, out=tmp_path / "out")
    assert "pseudo/train3.png" in page.text and "rw/train0.npz" in page.text
    assert "left out: gallery: " in capsys.readouterr().err


@pytest.mark.parametrize("n", [0, 1, 2, 5, 6, 7, 40])
def test_no_image_is_best_and_worst(n):
    places = [i for positions in gallery.places(n, 2).values() for i in positions]
    assert len(places) == len(set(places)) == min(n, 6) and set(places) <= set(range(n))


def test_the_median_is_in_the_middle():
    assert list(gallery.places(41, 1)["median"]) == [20]
    assert list(gallery.places(40, 2)["median"]) == [19, 20]


def test_the_iou_of_an_image_by_hand(data_root):
    truth = np.array([[0, 0, 1, 1], [2, 2, 255, 255]], np.uint8)
    label = np.array([[0, 1, 1, 1], [2, 3, 1, 255]], np.uint8)
    matrix = Album(DataRoot(data_root), "train", "SegmentationClass", []).confusion(label, truth)
    assert matrix.iou() == pytest.approx([50, 200 / 3, 50, 0])
    assert matrix.miou() == pytest.approx((50 + 200 / 3 + 50) / 4)


def test_letters_that_no_font_has_are_noted_once(tmp_path, capsys, recwarn, monkeypatch):
    cell = Cell(np.zeros((20, 30, 3), np.uint8), np.ones((20, 30), np.uint8))
    for name, said in (("cat", 0), ("\ue123\ue124", 1)):  # of private use
        gallery.draw([[("labels", name, cell)]], [name], 80, tmp_path / "a.png")
        assert capsys.readouterr().err.count("note: no font here has all letters") == said
    assert not [w for w in recwarn if "Glyph" in str(w.message)]
    # Letters are looked for in all that is installed, as a Chinese name's in a font for them.
    fonts = [Namespace(name=name) for name in ("WenQuanYi Zen Hei", "DejaVu Sans", "Other")]
    monkeypatch.setattr(matplotlib.font_manager.fontManager, "ttflist", fonts)
    with charts.style():
        assert matplotlib.rcParams["font.family"] == ["DejaVu Sans", "WenQuanYi Zen Hei"]
