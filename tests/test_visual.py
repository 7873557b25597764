"""core/visual.py and the pictures of tools/overview.py and tools/summary.py."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import write_cams
from PIL import Image

from core.data import images
from core.errors import InputError
from tools import overview, summary, visual
from tools.reporting.pictures import image_iou, mean_iou

GREY = np.full((20, 30, 3), 128, np.uint8)


def test_heat_map_is_blue_where_low_and_red_where_high():
    score = np.zeros((20, 30))
    score[:, 15:] = 1
    score[0, 0] = np.nan  # counts as low
    picture = visual.heat_map(GREY, score)
    low, high = picture[5, 5].astype(int), picture[5, 25].astype(int)
    assert picture.dtype == np.uint8 and picture.shape == GREY.shape
    assert low[2] > low[0] and high[0] > high[2]
    assert (picture[0, 0] == picture[5, 5]).all()
    with pytest.raises(ValueError, match="under a map"):
        visual.heat_map(GREY, score[1:])


def test_labels_have_the_voc_colours_and_overlays_keep_the_background():
    label = np.zeros((20, 30), np.uint8)
    label[:, 10:20], label[:, 20:] = 1, images.IGNORE
    colours = visual.colour_label(label)
    assert colours[0, 0].tolist() == [0, 0, 0] and colours[0, 10].tolist() == [128, 0, 0]
    assert (colours[0, 20] > 230).all()
    over = visual.overlay(GREY, label)
    assert (over[:, :10] == 128).all()
    assert over[0, 10].tolist() == [128, 51, 51]  # 0.4 * 128 + 0.6 * (128, 0, 0)


def test_fit_only_reduces():
    assert images.fit(GREY, 30) is GREY
    assert images.fit(GREY, 15).shape == (10, 15, 3)
    assert images.fit(np.zeros((1, 4000, 3), np.uint8), 100).shape == (1, 100, 3)


def test_grid_places_every_picture_and_leaves_blanks():
    red = np.zeros((10, 40, 3), np.uint8) + np.array([255, 0, 0], np.uint8)
    page = visual.grid([[red, None], [None, GREY]], ["a", "a title too long for it"], side=64)
    assert page.dtype == np.uint8
    red_places = np.argwhere((page == [255, 0, 0]).all(2))
    assert np.ptp(red_places[:, 1]) == 63 and np.ptp(red_places[:, 0]) == 15
    with pytest.raises(ValueError, match="one for each title"):
        visual.grid([[red]], ["a", "b"])


def test_legend_grows_with_the_names():
    few, many = visual.legend(["a"]), visual.legend([f"class {i}" for i in range(30)])
    assert few.shape[0] < many.shape[0] and few.shape[2] == 3


def test_image_iou_by_hand():
    truth = np.array([[0, 0, 1, 1], [2, 2, 255, 255]], np.uint8)
    label = np.array([[0, 1, 1, 1], [2, 3, 1, 255]], np.uint8)
    ious = image_iou(label, truth)
    assert ious == pytest.approx({0: 50, 1: 200 / 3, 2: 50, 3: 0})
    assert mean_iou(ious) == pytest.approx((50 + 200 / 3 + 50) / 4)
    assert mean_iou(image_iou(label, np.full_like(truth, 255))) is None


def test_overview_of_cams_without_the_later_stages(data_root, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    write_cams(data_root, run / "cam")
    common = ["--data", str(data_root), "--device", "cpu", "--side", "64"]
    overview.main([*common, "--demo", str(run), "--split", "train", "val", "--images", "3"])
    page = np.array(Image.open(run / "overview.png"))
    assert page.shape[1] == 6 * 70 + 6
    with pytest.raises(InputError, match="no such directory"):
        overview.main([*common, "--cams", str(tmp_path / "no"), "--out", str(tmp_path / "o.png")])
    with pytest.raises(InputError, match="--out"):
        overview.main(common)


def test_summary_prints_and_writes_the_scores(tmp_path, capsys):
    for name, miou in (("cam", 50.0), ("val", 60.5)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"miou": miou, "images": 7}))
    for name, stage in (("pseudo", "make_pseudo_labels"), ("rw", "random_walk")):
        (tmp_path / name).mkdir()
        record = {"stage": stage, "seconds": 12.5}
        (tmp_path / name / "run.json").write_text(json.dumps(record))
    out = tmp_path / "metrics.json"
    scores = [f"segmentation_val={tmp_path}/val.json", f"cam={tmp_path}/cam.json"]
    runs = [str(tmp_path / n) for n in ("pseudo", "rw")]
    summary.main([*scores, "--runs", *runs, "--out", str(out)])
    assert json.loads(out.read_text()) == {
        "cam": 50.0,
        "segmentation_val": 60.5,
        "seconds": {"pseudo": 12.5},  # the walk's time is that of the stage that did it
    }
    assert "Puzzle-CAM, train" in capsys.readouterr().out
    with pytest.raises(InputError, match="NAME=FILE"):
        summary.main([f"other={tmp_path}/cam.json"])
    (tmp_path / "cam.json").write_text("{}")
    with pytest.raises(InputError, match="no mIoU"):
        summary.main(scores)
