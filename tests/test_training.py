"""The optimiser recipe against the golden; sampling, resuming, accumulating and stopping."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from itertools import chain
from types import SimpleNamespace

import train_affinity
import train_classification
from core.errors import InputError
from core.method import losses
from core.method.networks import AffinityNet, Classifier
from core.method.puzzle import merge, tile
from core.run import optimizer, training
from core.run.log import Log
from core.run.plan import Plan
from core.run.training import Trainer

import numpy as np
import pytest
import torch
from conftest import REPO, SMALL, golden, run_stage


def test_sgd_poly_golden():
    g = golden("sgd_poly")
    weight = torch.nn.Parameter(torch.from_numpy(g["p0"]))
    groups = [{"params": [weight], "weight_decay": float(g["weight_decay"])}]
    sgd = optimizer.sgd(groups, 0.1, 1e-4, fused=False)
    for step, grad in enumerate(g["grads"]):
        lr = optimizer.poly_lr(step, int(g["max_step"]), float(g["base_lr"]))
        assert lr == pytest.approx(g["lr"][step], rel=1e-6)
        sgd.param_groups[0]["lr"] = lr
        weight.grad = torch.from_numpy(grad)
        sgd.step()
        np.testing.assert_allclose(weight.detach(), g["params"][step], rtol=1e-5)


def test_parameter_groups():
    network = Classifier("resnet18", 3)
    groups = optimizer.parameter_groups(network, 1e-4, pretrained=True)
    scales = {g["scale"]: g for g in groups}
    assert set(scales) == {1, 2, 10}  # the classifier has no bias: no x20 group
    assert scales[10]["params"] == [network.classifier.weight]
    assert network.backbone.bn1.bias in set(scales[2]["params"])
    assert scales[2]["weight_decay"] == 0 and scales[1]["weight_decay"] == 1e-4
    assert sum(len(g["params"]) for g in groups) == len(list(network.parameters()))
    from_scratch = optimizer.parameter_groups(network, 1e-4, pretrained=False)
    assert {g["scale"] for g in from_scratch} == {10, 20}
    (only,) = optimizer.one_group(AffinityNet("resnet18"), 1e-4)
    assert only["scale"] == 1 and len(only["params"]) == 5 * 3 + 2  # the backbone is frozen


def test_global_batches_do_not_depend_on_processes(monkeypatch):
    plan = Plan(max_step=6, batch_size=4, lr=0.1, momentum=0, seed=5)

    def all_ranks(world: int) -> list[set[int]]:
        monkeypatch.setenv("WORLD_SIZE", str(world))
        parts = []
        for rank in range(world):
            monkeypatch.setenv("RANK", str(rank))
            parts.append(list(plan.batches(11, start=0)))
        return [sorted(chain(*batch)) for batch in zip(*parts, strict=True)]

    alone = all_ranks(1)
    assert all_ranks(2) == alone and all_ranks(4) == alone
    for epoch in range(3):  # 2 full batches an epoch; no image twice
        draws = list(chain(*alone[2 * epoch : 2 * epoch + 2]))
        assert len(set(draws)) == 8 and {d // 11 for d in draws} == {epoch}


def weights_of(out) -> dict[str, torch.Tensor]:
    return torch.load(out / "model.pt", weights_only=True)["weights"]


def arguments(data_root, out, *more: object) -> list[str]:
    base = ["--data", data_root, "--split", "train", "--out", out, *SMALL]
    return [str(a) for a in [*base, *more]]


def test_interrupted_run_ends_bit_identical(data_root, tmp_path, monkeypatch):
    """Stop between two checkpoints and between two log rows, then start again."""
    more = ("--save-every", 3, "--log-every", 2, "--epochs", 4)
    run_stage(train_classification.main, *arguments(data_root, tmp_path / "whole", *more))

    original = training.Trainer.update

    def stop_at_5(self, *args):
        if self.step == 5:
            raise KeyboardInterrupt
        original(self, *args)

    monkeypatch.setattr(training.Trainer, "update", stop_at_5)
    with pytest.raises(KeyboardInterrupt):
        run_stage(train_classification.main, *arguments(data_root, tmp_path / "cut", *more))
    monkeypatch.setattr(training.Trainer, "update", original)
    run_stage(train_classification.main, *arguments(data_root, tmp_path / "cut", *more))

    whole, cut = weights_of(tmp_path / "whole"), weights_of(tmp_path / "cut")
    assert all(torch.equal(whole[k], cut[k]) for k in whole)
    logs = [(tmp_path / name / "log.jsonl").read_bytes() for name in ("whole", "cut")]
    assert logs[0] == logs[1]


def test_sigkill_and_resume_bit_identical(data_root, tmp_path):
    """A real SIGKILL on a real process, wherever it happens to be."""
    more = ("--save-every", 1, "--epochs", 3)
    run_stage(train_classification.main, *arguments(data_root, tmp_path / "whole", *more))
    script = [sys.executable, str(REPO / "train_classification.py")]
    command = [*script, *arguments(data_root, tmp_path / "killed", *more)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not (tmp_path / "killed" / "last.pt").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "model.pt").exists()
    run_stage(train_classification.main, *arguments(data_root, tmp_path / "killed", *more))
    whole, killed = weights_of(tmp_path / "whole"), weights_of(tmp_path / "killed")
    assert all(torch.equal(whole[k], killed[k]) for k in whole)
    logs = [(tmp_path / name / "log.jsonl").read_bytes() for name in ("whole", "killed")]
    assert logs[0] == logs[1]


def test_loss_terms_can_be_switched_off(data_root, tmp_path):
    """The four rows of Table 1 log just the terms they are made of."""
    expected = {
        (): {"cls", "p_cls", "re", "alpha"},
        ("--no-re",): {"cls", "p_cls"},
        ("--no-p-cls",): {"cls", "re", "alpha"},
        ("--no-p-cls", "--no-re"): {"cls"},
    }
    for switches, terms in expected.items():
        out = tmp_path / ("run" + "".join(switches))
        run_stage(train_classification.main,
                  *arguments(data_root, out, *switches, "--epochs", 1))  # fmt: skip
        rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        for row in rows:
            assert set(row) == {"step", "epoch", "lr", "loss", "peak"} | terms
            weight = row.get("alpha", 0)
            parts = row["cls"] + row.get("p_cls", 0) + weight * row.get("re", 0)
            assert row["loss"] == pytest.approx(parts, rel=1e-4)
            assert "alpha" not in terms or weight == losses.alpha(row["step"] - 1, 2)


def test_puzzle_loss_is_the_papers():
    """The loss of a batch against its definition, written out with loops over tiles."""
    torch.manual_seed(0)
    network = Classifier("resnet18", 3).eval()
    images = torch.randn(2, 3, 64, 64)
    labels = torch.tensor([[1.0, 0, 1], [0, 1, 0]])
    with torch.no_grad():
        maps = network(images)
        loss, terms = losses.puzzle(maps, merge(network(tile(images))), labels, 3.0)
        merged = torch.zeros_like(maps)
        for row in (0, 1):
            for column in (0, 1):
                y, x = 32 * row, 32 * column
                piece = network(images[:, :, y : y + 32, x : x + 32])
                merged[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = piece
        margin = torch.nn.functional.multilabel_soft_margin_loss
        l_re = ((maps - merged).abs() * labels[:, :, None, None]).mean()
        expected = margin(maps.mean((2, 3)), labels) + margin(merged.mean((2, 3)), labels)
    torch.testing.assert_close(loss, expected + 3 * l_re)
    torch.testing.assert_close(terms["re"], l_re)


def test_nan_loss_stops_with_step_terms_and_checkpoint(data_root, tmp_path, monkeypatch):
    original = losses.classification
    calls = []

    def poisoned(logits, labels):
        calls.append(1)
        return original(logits, labels) * (float("nan") if len(calls) > 4 else 1)

    monkeypatch.setattr(losses, "classification", poisoned)
    more = ("--no-re", "--no-p-cls", "--epochs", 6, "--log-every", 3, "--save-every", 2)
    with pytest.raises(InputError, match=r"not finite at step 4 \(loss nan, cls nan.*last\.pt"):
        run_stage(train_classification.main, *arguments(data_root, tmp_path / "nan", *more))
    state = torch.load(tmp_path / "nan" / "last.pt", weights_only=True)
    assert state["step"] == 4
    assert all(v.isfinite().all() for v in state["network"].values())


def test_gradients_that_always_overflow_stop_a_training_in_fp16(data_root, tmp_path, monkeypatch):
    """The loss is finite, and GradScaler leaves every step out: nothing would be learned."""
    original = losses.classification

    def steep(logits, labels):  # the square root's gradient at 0 is not finite
        return original(logits, labels) + (0 * logits).sqrt().sum()

    monkeypatch.setattr(losses, "classification", steep)
    monkeypatch.setattr(training, "LEAST_SCALE", 20_000)  # two steps from the first scale
    more = ("--no-re", "--no-p-cls", "--amp", "fp16", "--epochs", 6)
    with pytest.raises(InputError, match=r"overflow fp16 step after step, up to step 2; .*amp off"):
        run_stage(train_classification.main, *arguments(data_root, tmp_path / "fp16", *more))


def test_microbatches_make_the_same_update(data_root, tmp_path):
    """With frozen BatchNorm and no dropout, the microbatches give the batch's gradients."""
    for parts in (1, 2):
        run_stage(
            train_affinity.main, *arguments(data_root, tmp_path / str(parts)),
            "--labels", data_root / "SegmentationClass", "--radius", 5, "--accumulate", parts,
        )  # fmt: skip
    one, two = weights_of(tmp_path / "1"), weights_of(tmp_path / "2")
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-5, atol=1e-5)


def test_fewer_pairs_than_microbatches_weigh_as_in_one_batch():
    label = torch.full((4, 8, 8), 255)
    label[2, 3, 3:5] = 1  # of one class: the only pair
    edge = torch.rand(4, 8, 8, generator=torch.Generator().manual_seed(0))
    trainer = SimpleNamespace(plan=SimpleNamespace(accumulate=4))
    counts = Trainer.mean_count(trainer, losses.count_pairs(label, 3))
    parts = [losses.affinity(edge[i : i + 1], label[i : i + 1], 3, counts) / 4 for i in range(4)]
    torch.testing.assert_close(sum(parts), losses.affinity(edge, label, 3))


def test_compiled_training_is_the_eager_one(data_root, tmp_path, monkeypatch):
    """--compile changes no figure, compiles for one size of batch, and saves plain names."""
    calls, compile = [], torch.compile

    def traced(network, **options):
        calls.append(options)
        return compile(network, backend="eager", **options)

    monkeypatch.setattr(torch, "compile", traced)
    for more in ([], ["--compile"]):
        out = tmp_path / f"run{len(more)}"
        run_stage(train_classification.main, *arguments(data_root, out, "--epochs", 1, *more))
    assert calls == [{"dynamic": False}]
    eager, compiled = weights_of(tmp_path / "run0"), weights_of(tmp_path / "run1")
    assert eager.keys() == compiled.keys()
    for name in eager:
        torch.testing.assert_close(eager[name], compiled[name])


def test_flat_maps_are_warned_of(data_root, tmp_path, capsys, monkeypatch):
    """Maps that are flat while alpha is high: a row of the log says so, and stderr once."""

    class Flat(Classifier):
        def __init__(self, *args):
            super().__init__(*args)
            torch.nn.init.zeros_(self.classifier.weight)

    def warned(heights, steps=10, alpha=2.0):
        """The first step with a warning, of a log whose rows have these heights."""
        log = Log(tmp_path / "log.jsonl", 0)
        for step, peak in enumerate(heights, 1):
            row = {"step": step * steps, "peak": peak} | ({"alpha": alpha} if alpha else {})
            if warning := train_classification.flat_maps(row, log, 4):
                return row["step"], warning
            log.write(row)
        return None

    falling = [8.5] * 5 + [4.0] * 5
    step, warning = warned(falling)
    assert step == 100 and "4.00" in warning and "8.50" in warning
    assert warned([8.5] * 5 + [5.0] * 5) is None
    assert warned(falling, alpha=0) is None  # without L_re
    assert warned(falling, steps=1) is None  # too few steps to say
    assert warned([6.0, 12.0, 17.0, 3.0, 3.0] + [7.0] * 20) is None  # first guesses
    assert warned([1.2]) and warned([1.2], alpha=1.0) is None  # none from the start; alpha rising
    monkeypatch.setattr(train_classification, "Classifier", Flat)
    more = ("--lr", 1e-7, "--alpha-ramp", 0)
    run_stage(train_classification.main, *arguments(data_root, tmp_path / "flat", *more))
    rows = [json.loads(row) for row in (tmp_path / "flat/log.jsonl").read_text().splitlines()]
    assert all("--re-seams drop" in row["warning"] for row in rows)
    assert capsys.readouterr().err.count("warning: step") == 1
