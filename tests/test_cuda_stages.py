"""Every stage's main() on pretended CUDA, of the kind that computes in bf16 and of an older one.

Two devices never meet in an operator, autocast follows CUDA's lists, fp16 goes through its scaler,
and the host waits nowhere that it need not.
"""

from __future__ import annotations

import ast
import collections
import importlib
import json
import shutil
from pathlib import Path

import train_classification
from core.errors import InputError
from core.run import optimizer, precision
from core.run.plan import Plan
from core.run.training import Trainer

import pytest
import torch
from conftest import REPO, write_data_root
from pretend_cuda import CUDA, Log, pretend_cuda

SMALL = "--backbone resnet18 --weights none --epochs 2 --batch-size 4 --crop 32 --sides 24 40 "
SMALL += "--lr 0.005 --log-every 4"
STEPS, IMAGES = 4, 8
STAGES = {
    "train_classification": f"{SMALL} --out {{t}}/net",
    "make_cam": "--checkpoint {t}/net/model.pt --out {t}/cam --scales 0.5 1",
    "make_affinity_labels": "--scores {t}/cam --out {t}/affinity_labels --jobs 2",
    "train_affinity": f"{SMALL} --radius 3 --labels {{t}}/affinity_labels --out {{t}}/affinity",
    "make_random_walk": "--scores {t}/cam --checkpoint {t}/affinity/model.pt --out {t}/rw "
    "--pad-to 32 --log2-steps 3",
    "make_pseudo_labels": "--scores {t}/rw --out {t}/pseudo --jobs 2",
    "train_segmentation": f"{SMALL} --labels {{t}}/pseudo --out {{t}}/segmentation",
    "predict": "--checkpoint {t}/segmentation/model.pt --out {t}/predictions --jobs 2 "
    "--crf-iterations 2 --scales 0.5",
    "evaluate": "--labels {t}/predictions --json {t}/scores.json",
}
CAPABILITIES = {"bf16": (9, 0), "fp16": (7, 0)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, tuple[Path, dict[str, Log]]]:
    """Every stage after the other on either GPU: what they wrote, and where the host waited."""
    found = {}
    for amp, capability in CAPABILITIES.items():
        root = tmp_path_factory.mktemp(amp)
        write_data_root(root / "data")
        logs = {}
        for name, options in STAGES.items():
            base = f"--data {root / 'data'} --split train --device auto --workers 0 "
            command = (base + options.format(t=root)).split()
            with pretend_cuda(REPO, capability) as log:
                importlib.import_module(name).main(command)
            logs[name] = log
        found[amp] = root, logs
    return found


@pytest.mark.parametrize("amp", CAPABILITIES)
def test_every_stage_runs_to_its_end(runs, amp):
    root, _ = runs[amp]
    for name in ("net", "cam", "affinity_labels", "affinity", "rw", "pseudo", "segmentation",
                 "predictions"):  # fmt: skip
        made = json.loads((root / name / "run.json").read_text())
        assert made["finished"] and made["device"] == "cuda:0", name
        assert made["resolved"].get("amp", amp) == amp, name
        assert made["resolved"].get("crf_backend", "torch") == "torch", name
    assert json.loads((root / "scores.json").read_text())["images"] == IMAGES


def function_of(where: str) -> str:
    """The name of the function that a wait's innermost line is in, with its file."""
    file, line = where.split(" < ")[0].split(":")
    tree = ast.parse((REPO / file).read_text())
    inside = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)
              and node.lineno <= int(line) <= node.end_lineno]  # fmt: skip
    return f"{file}:{inside[-1].name}" if inside else file


@pytest.mark.parametrize("amp", CAPABILITIES)
@pytest.mark.parametrize("name", [n for n in STAGES if n.startswith("train")])
def test_no_step_waits_for_the_gpu(runs, name, amp):
    """The start, a row of the log and a checkpoint do; under fp16 GradScaler looks once a step."""
    found = collections.Counter(function_of(wait.where) for wait in runs[amp][1][name].waits)
    training = "core/run/training.py:"
    places = {f"{training}{n}" for n in ("__init__", "_check_finite", "save", "update")}
    model = "core/run/checkpoint.py:"  # model.pt, at the end
    assert found.keys() <= places | {f"{model}check_finite", f"{model}save_model"}
    assert found[f"{model}check_finite"] <= 1
    assert found[f"{training}update"] == (STEPS if amp == "fp16" else 0)


# What inference waits for beside its results, by stage: the CRF for the numbers of vertices of its
# lattices, one an image and a spatial one that images of one size share (two streams may both
# build it).
ASKED = {
    "make_cam": range(1),
    "make_affinity_labels": range(IMAGES, IMAGES + 3),
    "make_random_walk": range(1),
    "make_pseudo_labels": range(IMAGES, IMAGES + 3),
    "predict": range(IMAGES, IMAGES + 3),
}


@pytest.mark.parametrize("amp", CAPABILITIES)
@pytest.mark.parametrize("name", ASKED)
def test_inference_waits_for_its_results_alone(runs, name, amp):
    """The network is moved once; then one copy of a result an image."""
    waits = runs[amp][1][name].waits
    found = collections.Counter(wait.kind for wait in waits)
    assert found.keys() <= {"blocking copy to the GPU", "copy to the CPU", "nonzero"}
    assert found["copy to the CPU"] == IMAGES and found["nonzero"] in ASKED[name]
    moved = {function_of(w.where) for w in waits if w.kind == "blocking copy to the GPU"}
    assert moved <= {f"{name}.py:main"}


@pytest.mark.parametrize("capability", CAPABILITIES.values(), ids=CAPABILITIES)
def test_the_optimiser_is_fused_where_that_is_safe(tmp_path, capability):
    """Not under fp16: after a skipped first step torch's fused SGD would go on from garbage."""
    with pretend_cuda(REPO, capability):
        amp = precision.amp_type("auto", CUDA)
        plan = Plan(max_step=4, batch_size=1, lr=0.1, momentum=1e-4, amp=amp)
        layer = torch.nn.Conv2d(3, 2, 1)
        trainer = Trainer(layer, optimizer.one_group(layer, 0.0), plan, tmp_path, CUDA)
        assert bool(trainer.optimizer.defaults["fused"]) == (amp == "bf16")


def test_a_skipped_first_step_leaves_no_trace(tmp_path):
    """fp16: gradients overflow in the first step; the second is the first of stock SGD."""
    weights = {}
    for skipped in (True, False):
        (tmp_path / str(skipped)).mkdir()
        with pretend_cuda(REPO, (7, 0)):
            torch.use_deterministic_algorithms(True)  # torch.empty is then filled with NaN
            torch.manual_seed(0)
            layer = torch.nn.Conv2d(3, 2, 1)
            plan = Plan(max_step=8, batch_size=1, lr=0.1, momentum=0.9, amp="fp16", log_every=99,
                        save_every=99)  # fmt: skip
            groups = optimizer.one_group(layer, 1e-4)
            trainer = Trainer(layer, groups, plan, tmp_path / str(skipped), CUDA)
            views = torch.ones(1, 3, 4, 4).to(CUDA)
            for factor in ([torch.inf] if skipped else []) + [1.0, 1.0]:
                trainer.begin([])
                for group in trainer.optimizer.param_groups:
                    group["lr"] = 0.1
                trainer.backward(trainer.network(views).float().square().mean() * factor)
                trainer.update()
            weights[skipped] = layer.weight.detach().cpu()
    assert torch.equal(weights[True], weights[False]) and weights[True].isfinite().all()


def test_another_precision_is_no_resume(runs, tmp_path):
    """A run begun in bf16 does not go on in fp16 on an older GPU, and says so."""
    root, _ = runs["bf16"]
    out = tmp_path / "net"
    shutil.copytree(root / "net", out)
    record = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps(record | {"finished": False}))
    command = f"--data {root / 'data'} --split train --workers 0 {SMALL} --out {out}".split()
    with pretend_cuda(REPO, (7, 0)), pytest.raises(InputError, match="amp bf16 -> fp16"):
        train_classification.main(command)
