"""tools/report.py --compare: two runs side by side, per class and per image."""

from __future__ import annotations

import json
import re
import shutil

import evaluate
import make_pseudo_labels
from core.data.datasets import DataRoot
from core.data.metrics import ConfusionMatrix
from core.errors import InputError
from tools import report

import numpy as np
import pytest
from conftest import run_stage, write_cams
from PIL import Image


@pytest.fixture
def pair(data_root, tmp_path):
    """Pseudo-labels at two thresholds, scored."""
    for name, threshold in (("a", 0.2), ("b", 0.7)):
        run = tmp_path / name
        run.mkdir()
        write_cams(data_root, run / "cam")
        base = ("--data", data_root, "--split", "train", "--device", "cpu", "--jobs", 1)
        more = ("--no-crf", "--workers", 0, "--threshold", threshold)
        out = run / "pseudo"
        run_stage(make_pseudo_labels.main, *base, *more, "--scores", run / "cam", "--out", out)
        run_stage(evaluate.main, *base, "--labels", out, "--json", run / "pseudo.json")
    return tmp_path / "a", tmp_path / "b"


def compare(pair, out, *more) -> str:
    run_stage(report.main, "--compare", *pair, "--out", out, "--overview", 0, *more)
    return (out / "compare.html").read_text()


def test_differences_are_those_of_the_label_maps(pair, data_root, tmp_path):
    page = compare(pair, tmp_path / "out", "--images", 2)
    for path in pair:
        assert str(path) in page
    assert "pseudo: threshold" in page and ">0.2<" in page and ">0.7<" in page
    data, wanted = DataRoot(data_root), {}
    for image_id in data.ids("train"):
        mious = []
        for path in pair:
            matrix = ConfusionMatrix(data.n_labels)
            label = np.array(Image.open(path / f"pseudo/{image_id}.png"))
            matrix.update(label, np.array(Image.open(data.mask_path(image_id))))
            mious.append(matrix.miou())
        wanted[image_id] = mious[1] - mious[0]
    shown = re.findall(r"<b>(\w+)</b> <span class=\"(up|down)\">([+-][\d.]+)", page)
    assert shown
    for image_id, kind, difference in shown:
        assert float(difference) == pytest.approx(wanted[image_id], abs=0.051)
        assert (kind == "up") == (wanted[image_id] > 0)
    for kind, sign in (("up", -1), ("down", 1)):
        order = [float(d) for _, k, d in shown if k == kind]
        best = sorted((d for d in wanted.values() if d * sign < 0), key=lambda d: sign * d)[:4]
        assert order == pytest.approx(best, abs=0.051)
    better = sum(d > 0 for d in wanted.values())
    assert f"B is better in {better}, A in {sum(d < 0 for d in wanted.values())}" in page


def test_classes_are_ordered_by_difference(pair, tmp_path):
    page = compare(pair, tmp_path / "out")
    table = page[page.index("dense CRF</h3>") :].split("</table>")[0]
    rows = re.findall(r'scope="row">(\w+)</th>(.*?)</tr>', table, re.S)
    found = {name: re.findall(r'class="n">([+\-\d.]+)<', cells) for name, cells in rows}
    scores = [json.loads((path / "pseudo.json").read_text()) for path in pair]
    assert found.pop("mIoU")[:2] == [f"{each['miou']:.1f}" for each in scores]
    for name, (a, b, difference) in found.items():
        x, y = (each["iou"][name] for each in scores)
        assert (a, b, difference) == (f"{x:.1f}", f"{y:.1f}", f"{y - x:+.1f}")
    sizes = [abs(float(each[2])) for each in found.values()]
    assert sizes == sorted(sizes, reverse=True) and len(sizes) == 4


def test_without_masks_settings_and_classes_are_left(pair, data_root, tmp_path):
    shutil.rmtree(data_root / "SegmentationClass")
    for path in pair:
        (path / "pseudo.json").unlink()
    page = compare(pair, tmp_path / "out")
    assert "No evaluation is of both" in page and "differ most" not in page


def test_two_runs_are_asked_for(pair, tmp_path):
    with pytest.raises(InputError, match="holds 2 runs"):
        compare((tmp_path, pair[0]), tmp_path / "out")
    with pytest.raises(InputError, match="give folders of runs"):
        run_stage(report.main, "--out", tmp_path / "out")
