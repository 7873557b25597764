"""The benchmark runs and writes what it says, and its references compute what core/ computes."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

from core.data.transforms import SCALES, RandomView, normalize
from core.method import crf, losses
from core.method.cam import multi_scale, of_classes
from core.method.puzzle import merge, tile
from core.method.random_walk import random_walk
from tools import benchmark
from tools.benchmarking import references, training, whole
from tools.benchmarking.data import data_root
from tools.benchmarking.measure import Bench

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

CHEAP = ["loader", "evaluation", "bytes", "pyramid", "many-labels", "scaling"]
COLUMNS = {
    "stage",
    "device",
    "ours",
    "reference",
    "unit",
    "ratio",
    "bound_by",
    "machine",
    "versions",
}
HAS_PYDENSECRF = crf._pydensecrf() is not None


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    cpu = torch.device("cpu")
    return Bench(cpu, 1, tmp_path, 2, 0, True, (72, 96), 64, "resnet18", n_images=2)


def test_quick_run_writes_rows_and_a_chart(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "QUICK", {"size": (72, 96), "crop": 64, "n_images": 4})
    out, chart = tmp_path / "new/rows.json", tmp_path / "new/chart.png"
    stages = [*CHEAP, *(["affinity-labels", "crf"] if HAS_PYDENSECRF else [])]
    options = f"--quick --device cpu --threads 1 --json {out} --chart {chart} --stages"
    benchmark.main([*options.split(), *stages])
    rows = json.loads(out.read_text())["rows"]
    assert len(rows) == (14 if HAS_PYDENSECRF else 10)
    for row in rows:
        assert row.keys() >= COLUMNS
        assert row["device"] == "cpu" and row["quick"] and row["bound_by"]
        assert row["target"] is None  # of other sizes
        assert row["ours"] > 0 and row["reference"] > 0
        rate = row["unit"].endswith("/s")
        times = row["ours"] / row["reference"] if rate else row["reference"] / row["ours"]
        assert row["ratio"] == pytest.approx(times)
    sweep = next(row for row in rows if "thresholds" in row["stage"])
    assert sweep["largest_difference_miou"] < 1e-9
    assert all(row.get("agreement", 1) > 0.99 for row in rows)
    with Image.open(chart) as picture:
        assert picture.size[1] > 30 * len(rows)
    table = capsys.readouterr().out
    assert all(row["stage"] in table for row in rows)


@pytest.mark.usefixtures("known_rates")
def test_rows_of_whole_stages(bench):
    rows = list(whole.stages(bench))
    assert [row["stage"].removesuffix(".py") for row in rows] == list(whole.STAGES)
    assert all(row["ours"] < 2 for row in rows)  # images/s, of two, from a process's start


def test_a_stage_that_is_not_there_is_refused(capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["--stages", "nothing"])
    assert "nothing" in capsys.readouterr().err


def test_chart_takes_ratios_below_one_and_equal_rows(tmp_path):
    row = {"stage": "a", "device": "cpu", "ratio": 0.05, "target": None, "machine": "m"}
    row |= {"ours": 0.0123, "reference": 138_000.0, "unit": "ms/image"}
    assert [benchmark.human(row[key]) for key in ("ours", "reference")] == ["0.0123", "138,000"]
    benchmark.draw_chart(
        [row, {**row, "ratio": 1.0, "target": 2.0}, {**row, "ratio": 3e4}], tmp_path / "c.png"
    )
    assert (tmp_path / "c.png").stat().st_size > 0


def test_the_usual_loader_gives_nearly_our_view(bench):
    data = data_root(bench)
    path = data.image_path("0000")
    image = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)
    view, _, box = RandomView((50, 50), 64)(image, None, np.random.default_rng(3))
    ours = normalize(view[None], box[None])[0].numpy()
    usual = references.load_view(path, (50, 50), 64, np.random.default_rng(3))
    # PIL and torch round differently in the resize: by one of 255 steps at most.
    assert np.abs(ours - usual).max() < 2.01 / 255 / 0.22


def test_the_usual_puzzle_loss_is_ours():
    torch.manual_seed(0)
    images, labels = torch.randn(2, 3, 32, 32), torch.tensor([[1.0, 0, 1], [0, 1, 0]])
    network = nn.Conv2d(3, 3, 16, 16)
    ours, _ = losses.puzzle(network(images), merge(network(tile(images))), labels, 2.0)
    torch.testing.assert_close(references.puzzle_loss(network, images, labels, 2.0), ours)
    assert torch.equal(references.tile(images), tile(images))
    assert torch.equal(references.merge(tile(images)), merge(tile(images)))


def test_the_usual_affinity_loss_is_ours():
    torch.manual_seed(0)
    edge = torch.rand(2, 20, 24, dtype=torch.float64)
    label = torch.randint(0, 4, (2, 20, 24))
    label = torch.where(label == 3, 255, label).to(torch.uint8)
    usual = references.PairAffinity(4, 20, 24).loss(edge, label)
    torch.testing.assert_close(usual, losses.affinity(edge, label, radius=4))


def test_the_dense_walk_is_ours():
    torch.manual_seed(0)
    cam, edge = torch.rand(2, 9, 11, dtype=torch.float64), torch.rand(9, 11, dtype=torch.float64)
    matrix = references.dense_transition(edge, 5, 10.0)
    for _ in range(6):
        matrix = matrix @ matrix
    usual = ((cam * (1 - edge)).flatten(1) @ matrix).view(cam.shape)
    torch.testing.assert_close(usual, random_walk(cam, edge, 5, 10.0, 6), rtol=1e-10, atol=1e-12)


def test_the_usual_multi_scale_cam_is_ours(bench):
    path = data_root(bench).image_path("0000")
    network = nn.Conv2d(3, 4, 16, 16)
    with torch.no_grad():
        image = np.array(Image.open(path).convert("RGB"))
        ours = of_classes(multi_scale(network, image, SCALES), [1, 3]).numpy()
        usual = references.multi_scale_cam(network, path, [1, 3], torch.device("cpu"))
    np.testing.assert_allclose(usual["cam"], ours, atol=1e-5)
    assert usual["hr_cam"].shape == (2, *bench.size)


def test_one_step_of_both_trainings_moves_the_weights_alike(bench):
    torch.manual_seed(0)
    network = nn.Sequential()
    # 48 pixels wide: no map of a tile equals the whole image's, where |A - A_re| has a kink.
    network.backbone = nn.Conv2d(3, 4, 48, 16, padding=16)
    network.classifier = nn.Conv2d(4, 20, 1, bias=False)
    usual, ours = copy.deepcopy(network), copy.deepcopy(network)
    both = training.puzzle_training(bench)
    dataclasses.replace(both, network=lambda: usual).usual()()
    dataclasses.replace(both, network=lambda: ours).ours("off")()
    for our, theirs in zip(ours.parameters(), usual.parameters(), strict=True):
        torch.testing.assert_close(our, theirs, rtol=1e-5, atol=1e-8)
    assert not torch.equal(usual.classifier.weight, network.classifier.weight)
