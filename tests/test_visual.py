"""core/data/visual.py: heat maps, label maps, overlays and legends."""

from __future__ import annotations

from core.data import images, visual

import numpy as np
import pytest

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


def test_legend_grows_with_the_names():
    few, many = visual.legend(["a"]), visual.legend([f"class {i}" for i in range(30)])
    assert few.shape[0] < many.shape[0] and few.shape[2] == 3


def test_legends_have_the_letters_of_other_scripts(capsys):
    assert visual.legend(["кот"]).tolist() != visual.legend(["пёс"]).tolist()
    assert not capsys.readouterr().err
    visual.legend(["cat", "\ue123", "\ue124"])  # of private use
    assert capsys.readouterr().err.count("note: no font here has all letters") == 1
