"""core.data.metrics against the golden and naive loops; what a figure says it is against."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import evaluate
import make_pseudo_labels
from core import files
from core.data import images
from core.data.datasets import DataRoot
from core.data.metrics import BoundaryIoU, ConfusionMatrix, ThresholdSweep, average_precision
from core.data.transforms import normalize
from core.errors import InputError
from core.method.networks import Classifier
from core.recipe import EVALUATION
from core.run import checkpoint, precision
from tools import report

import numpy as np
import pytest
import torch
from conftest import golden, run_stage
from PIL import Image


def confusion(pred, gt, n_classes: int) -> ConfusionMatrix:
    matrix = ConfusionMatrix(n_classes)
    matrix.update(np.asarray(pred), np.asarray(gt))
    return matrix


def test_golden():
    g = golden("metrics")
    matrix, other = ConfusionMatrix(21), ConfusionMatrix(21)
    matrix.update(g["pred"][:2], g["gt"][:2])
    other.update(torch.from_numpy(g["pred"][2]), torch.from_numpy(g["gt"][2]).long())
    matrix.merge(other)
    np.testing.assert_allclose(matrix.iou(), g["iou"], rtol=1e-9)
    assert matrix.miou() == pytest.approx(float(g["miou"]), rel=1e-9)
    assert matrix.iou()[1:].mean() == pytest.approx(float(g["miou_foreground"]), rel=1e-9)
    assert matrix.fp() == pytest.approx(float(g["fp"]), rel=1e-9)
    assert matrix.fn() == pytest.approx(float(g["fn"]), rel=1e-9)


def test_matrix_equals_the_naive_loop():
    rng = np.random.default_rng(0)
    gt, pred = rng.choice([0, 1, 2, 3, 255], (2, 9, 8)), rng.choice([0, 1, 2, 3, 4, 255], (2, 9, 8))
    expected = np.zeros((4, 5), int)
    for t, p in zip(gt.flat, pred.flat, strict=True):
        if t != 255:
            expected[t, min(p, 4)] += 1
    np.testing.assert_array_equal(confusion(pred.astype("u1"), gt.astype("i4"), 4).matrix, expected)


def test_prediction_outside_the_classes_is_a_miss():
    matrix = confusion([1, 255, 7, -1, 255], [1, 1, 1, 1, 255], 2)
    np.testing.assert_array_equal(matrix.iou(), [np.nan, 25.0])
    assert (matrix.miou(), matrix.fp(), matrix.fn()) == (25.0, 0.0, 0.75)


def naive_shares(pred, gt, c: int) -> tuple[float, float] | None:
    """False positives and misses of class c over its union, pixel by pixel; None: on no side."""
    counts = {"both": 0, "pred": 0, "gt": 0}
    for p, t in zip(np.ravel(pred).tolist(), np.ravel(gt).tolist(), strict=True):
        if t != 255 and c in (p, t):
            counts["both" if p == t else "pred" if p == c else "gt"] += 1
    union = sum(counts.values())
    return (counts["pred"] / union, counts["gt"] / union) if union else None


@pytest.mark.parametrize("seed", range(4))
def test_fp_and_fn_of_the_foreground(seed):
    """The background is left out, and class 3, which is on neither side."""
    rng = np.random.default_rng(seed)
    gt = rng.choice([0, 1, 2, 4, 5, 255], (12, 9), p=[0.5, 0.1, 0.1, 0.1, 0.1, 0.1])
    pred = rng.choice([0, 1, 2, 4, 255], gt.shape)
    matrix = confusion(pred, gt, 6)
    shares = [share for c in range(1, 6) if (share := naive_shares(pred, gt, c)) is not None]
    assert len(shares) == 4
    found = matrix.fp(background=False), matrix.fn(background=False)
    np.testing.assert_allclose(found, np.mean(shares, 0), rtol=1e-12)


def test_class_on_neither_side_is_left_out():
    matrix = confusion([0, 0, 2, 2], [0, 2, 2, 2], 4)
    np.testing.assert_allclose(matrix.iou(), [50, np.nan, 200 / 3, np.nan])
    assert matrix.miou() == pytest.approx((50 + 200 / 3) / 2)
    assert matrix.miou() / 100 + matrix.fp() + matrix.fn() == pytest.approx(1)


def test_nothing_counted_is_nan(recwarn):
    empty = confusion([3, 3], [255, 255], 4)
    assert np.isnan([empty.miou(), empty.fp(), empty.fn()]).all() and not recwarn.list


@pytest.mark.parametrize(
    ("pred", "gt"), [([0, 1], [0, 4]), ([0], [-1]), ([0], [0, 1]), ([0.0], [0]), ([0], [0.5])]
)
def test_bad_input_is_refused(pred, gt):
    with pytest.raises(ValueError):
        confusion(pred, gt, 4)


def test_other_classes_are_not_merged():
    for make in (ConfusionMatrix, lambda n: ThresholdSweep(n, [0.1])):
        with pytest.raises(ValueError):
            make(3).merge(make(4))
    with pytest.raises(ValueError):
        ConfusionMatrix(256)


def test_sweep_equals_an_argmax_per_threshold():
    """Scores are multiples of 1/20 in float32, so ties with the thresholds are frequent."""
    rng = np.random.default_rng(0)
    thresholds = np.arange(0, 1.0, 0.05)
    expected = [ConfusionMatrix(6) for _ in thresholds]
    sweep, other = ThresholdSweep(6, thresholds), ThresholdSweep(6, thresholds)
    for number, kinds in enumerate(([2, 5], [1], [1, 3, 4])):
        cams = (rng.integers(0, 21, (len(kinds), 13, 17)) / 20).astype(np.float32)
        gt = rng.choice([0, 1, 2, 3, 4, 5, 255], cams.shape[1:]).astype(np.uint8)
        best = np.array(kinds, np.uint8)[cams.argmax(0)]
        (other if number == 2 else sweep).update(best, cams.max(0), gt)
        for matrix, threshold in zip(expected, thresholds, strict=True):
            background = np.full_like(cams[:1], threshold)
            labels = np.array([0, *kinds])[np.concatenate([background, cams]).argmax(0)]
            matrix.update(labels, gt)
    sweep.merge(other)
    for got, matrix in zip(sweep.confusions(), expected, strict=True):
        np.testing.assert_array_equal(got.matrix, matrix.matrix)


@pytest.mark.parametrize(
    "thresholds",
    [EVALUATION.thresholds, EVALUATION.paper_thresholds, [0.0, 0.5, 1.0], [0.3, 0.30001], [-1, 2]],
)
def test_thresholds_below_a_score(thresholds):
    """By the table as by a search, at and beside the thresholds themselves too."""
    sweep = ThresholdSweep(3, thresholds)
    exact = np.float32(thresholds)
    beside = [np.nextafter(exact, np.float32(side)) for side in (-9, 9)]
    noise = np.random.default_rng(0).random(5000, np.float32)
    scores = np.concatenate([exact, *beside, noise, np.float32([-np.inf, -0.1, 0, 1, 1.5, np.inf])])
    wanted = np.searchsorted(np.sort(exact), scores, side="left")
    np.testing.assert_array_equal(sweep._below(scores), wanted)


def test_sweep_sorts_its_thresholds_and_takes_tensors():
    sweep = ThresholdSweep(3, [0.5, 0.1])
    best, scores = torch.tensor([1, 1, 2]), torch.tensor([0.05, 0.3, 0.9])
    sweep.update(best, scores, torch.tensor([1, 1, 2]))
    assert sweep.thresholds.tolist() == [0.1, 0.5]
    assert [matrix.matrix[1].tolist() for matrix in sweep.confusions()] == [
        [1, 1, 0, 0],
        [2, 0, 0, 0],
    ]


def test_sweep_refuses_bad_scores():
    sweep, ones = ThresholdSweep(3, [0.5]), np.ones(2, int)
    for scores in (np.array([0.1, np.nan]), np.ones(3), ones):
        with pytest.raises(ValueError):
            sweep.update(ones, scores, ones)


def test_figures_name_their_ground_truth(data_root, tmp_path, capsys):
    """The folder; of COCO prepared by our tool the rule by which its masks were drawn."""
    masks = data_root / "SegmentationClass"
    given = "--data", data_root, "--split", "train", "--labels", masks, "--json"
    run_stage(evaluate.main, *given, tmp_path / "voc.json")
    (data_root / "coco.json").write_text('{"masks": {"rule": "smallest on top"}}')
    run_stage(evaluate.main, *given, tmp_path / "coco.json")
    figures = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("voc", "coco")]
    found = [each["ground_truth"] for each in figures]
    assert [truth["masks"] for truth in found] == ["SegmentationClass", "smallest on top"]
    for others in ("[]", '{"masks": "mine"}', "text"):  # another tool's
        (data_root / "coco.json").write_text(others)
        run_stage(evaluate.main, *given, tmp_path / "coco.json", "--overwrite")
        truth = json.loads((tmp_path / "coco.json").read_text())["ground_truth"]
        assert truth["masks"] == "SegmentationClass"
    digest = files.digest_files([masks / f"{i}.png" for i in DataRoot(data_root).ids("train")])
    assert {truth["digest"] for truth in found} == {digest}
    assert f"smallest on top (digest {digest})" in capsys.readouterr().out


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_by_counting(seed):
    """Against its definition: for each positive, the precision among all that score no less."""
    rng = np.random.default_rng(seed)
    scores, positive = rng.integers(0, 12, 40).astype(float), rng.random(40) < 0.3
    each = [positive[scores >= s].mean() for s in scores[positive]]
    assert average_precision(scores, positive) == pytest.approx(100 * np.mean(each))


def test_average_precision_at_its_ends():
    scores = np.arange(6.0)
    assert average_precision(scores, scores > 3) == 100
    assert average_precision(-scores, scores > 4) == pytest.approx(100 / 6)
    assert np.isnan(average_precision(scores, scores > 9))


def test_a_classifier_is_scored_without_masks(inputs, tmp_path, capsys):
    """Its labels alone; the figures are those of its logits on each image by itself."""
    root = tmp_path / "data"
    shutil.copytree(inputs / "data", root, ignore=shutil.ignore_patterns("SegmentationClass"))
    model = inputs / "classification/model.pt"
    command = ("--data", root, "--split", "val", "--device", "cpu", "--workers", 0)
    command += ("--classifier", model.parent, "--json", tmp_path / "run/classification.json")
    run_stage(evaluate.main, *command)
    out, err = capsys.readouterr()
    assert "was trained on" not in err
    trained = ("--data", inputs / "data", "--split", "train", "--classifier", model)
    run_stage(evaluate.main, *trained, "--device", "cpu", "--workers", 0)
    warning = "warning: the classifier was trained on 8 of these 8 images: give --split another"
    assert warning in capsys.readouterr().err
    found = json.loads((tmp_path / "run/classification.json").read_text())
    data = DataRoot(root)
    ids = data.ids("val")
    labels = data.image_labels(ids)
    network = checkpoint.load_model(model, (Classifier,), data.classes)
    rows = []
    for image_id in ids:
        image = images.read_image(data.image_path(image_id))[None]
        views = [normalize(each) for each in (image, image.flip(-1))]
        with (
            torch.inference_mode(),
            precision.autocast(
                precision.amp_type("auto", torch.device("cpu")), torch.device("cpu")
            ),
        ):
            rows.append(sum(network(each).float().mean((0, 2, 3)) for each in views) / 2)
    scores = torch.stack(rows).numpy()
    for index, name in enumerate(data.classes):
        positive = np.array([index + 1 in labels[i] for i in ids])
        wanted = average_precision(scores[:, index], positive)
        assert found["average_precision"][name] == pytest.approx(wanted, abs=1e-3)
    known = [each for each in found["average_precision"].values() if each is not None]
    assert found["mean_average_precision"] == pytest.approx(np.mean(known), abs=1e-3)
    assert f"{found['mean_average_precision']:6.2f}" in out
    run_stage(evaluate.main, *command)
    assert "scored before" in capsys.readouterr().out
    shutil.copytree(model.parent, tmp_path / "run/classification")
    run_stage(report.main, tmp_path / "run", "--data", root, "--out", tmp_path / "report")
    assert "mean average precision" in (tmp_path / "report/report.md").read_text()


def test_one_thing_is_evaluated(capsys):
    with pytest.raises(SystemExit):
        run_stage(evaluate.main, "--data", "d", "--scores", "s", "--classifier", "c")
    assert "one of --scores" in capsys.readouterr().err


def test_boundary_iou_by_distance():
    """Against its definition: the class's pixels within d of one that is not its, or of outside."""
    rng = np.random.default_rng(0)
    both = [np.kron(rng.integers(0, 3, (6, 8)), np.ones((7, 7))).astype(np.uint8) for _ in range(4)]
    both[1][10:14, 5:30] = 255
    meter = BoundaryIoU(3)
    counts = np.zeros((3, 2))
    for pred, gt in (both[:2], both[2:]):
        meter.update(pred, gt)
        d = max(1, round(0.02 * np.hypot(*gt.shape)))
        for index in range(3):
            edges = []
            for label in (pred, gt):
                inside = np.pad(label == index, d)  # Chebyshev distance d, as of a 3x3 erosion
                near = np.ones(label.shape, bool)
                for y in range(2 * d + 1):
                    for x in range(2 * d + 1):
                        near &= inside[y : y + label.shape[0], x : x + label.shape[1]]
                edges.append((label == index) & ~near & (gt != 255))
            counts[index] += ((edges[0] & edges[1]).sum(), (edges[0] | edges[1]).sum())
    np.testing.assert_allclose(meter.iou(), 100 * counts[:, 0] / counts[:, 1])
    same = BoundaryIoU(3)
    same.update(both[0], both[0])
    assert (same.iou() == 100).all()


def test_precision_and_recall_by_counting():
    rng = np.random.default_rng(1)
    gt, pred = rng.integers(0, 4, (20, 30)), rng.integers(0, 3, (20, 30))
    gt[:2], pred[5:7] = 255, 255
    matrix = ConfusionMatrix(5)
    matrix.update(pred, gt)
    known = gt != 255
    for c in range(3):
        hits = ((pred == c) & (gt == c)).sum()
        assert matrix.precision()[c] == pytest.approx(100 * hits / ((pred == c) & known).sum())
        assert matrix.recall()[c] == pytest.approx(100 * hits / (gt == c).sum())
    assert np.isnan(matrix.precision()[3]) and matrix.recall()[3] == 0
    assert np.isnan(matrix.recall()[4])


def test_figures_say_what_the_masks_were_used_for(inputs, tmp_path, capsys):
    """Of scores also those that no mask chose, which are those of label maps made that way."""
    base = ("--data", inputs / "data", "--device", "cpu", "--jobs", 1)

    def scored(option: str, folder: Path) -> dict:
        path = tmp_path / f"{folder.name}.json"
        run_stage(evaluate.main, *base, "--split", "train", option, folder, "--json", path)
        return json.loads(path.read_text())

    found = scored("--scores", inputs / "rw")
    assert found["masks_used_for"] == "threshold and score" and "boundary_iou" not in found
    out = capsys.readouterr().out
    assert "chosen on these masks" in out and "auto, label-free" in out
    for key, threshold in (("at_default", 0.35), ("at_auto", "auto")):
        labels = tmp_path / key
        more = ("--split", "train", "--scores", inputs / "rw", "--no-crf", "--workers", 0)
        run_stage(make_pseudo_labels.main, *base, *more, "--threshold", threshold, "--out", labels)
        made = scored("--labels", labels)
        assert made["masks_used_for"] == "score" and made["map"] == found["map"]
        for name in ("miou", "fp", "fn"):
            assert made[name] == pytest.approx(found[key][name], abs=1e-9)
        assert sum(map(sum, made["confusion"])) == sum(map(sum, found["confusion"]))
        assert made["boundary_miou"] > 0
    few = tmp_path / "few.json"
    more = ("--split", "train", "--scores", inputs / "rw", "--thresholds", 0.3, "--json", few)
    run_stage(evaluate.main, *base, *more)
    one = json.loads(few.read_text())
    assert one["at_default"] is None
    assert one["threshold"] == 0.3 and one["masks_used_for"] == "score" and one["sweep"] == []
    out = capsys.readouterr().out
    assert "(given)" in out and "chosen on" not in out and "widen" not in out
    few.write_text(few.read_text().replace('"miou"', '"mean"'))  # somebody's edit
    with pytest.raises(InputError, match=r"few\.json: damaged; give --overwrite"):
        run_stage(evaluate.main, *base, *more)


def test_masks_without_any_class_give_no_nan(data_root, tmp_path, capsys):
    """Neither in the JSON, which has none, nor without a word."""
    for path in (data_root / "SegmentationClass").iterdir():
        Image.fromarray(np.zeros((48, 64), np.uint8)).save(path)
    words = ("--data", data_root, "--split", "val", "--labels", data_root / "SegmentationClass")
    run_stage(evaluate.main, *words, "--device", "cpu", "--json", tmp_path / "val.json")
    text = (tmp_path / "val.json").read_text()
    found = json.loads(text)
    assert "NaN" not in text and (found["fp"], found["fn"], found["miou"]) == (None, None, 100)
    assert "no class in the masks nor in the labels" in capsys.readouterr().out
