"""Every stage's main() on pretended CUDA, of the kind that computes in bf16 and of an older one.

Two devices never meet in an operator, autocast follows CUDA's lists, fp16 goes through its scaler,
and the host waits nowhere that it need not.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
from conftest import REPO, write_data_root
from pretend_cuda import Log, pretend_cuda

SMALL = "--backbone resnet18 --weights none --epochs 2 --batch-size 4 --crop 64 --sides 48 80 "
SMALL += "--lr 0.005 --log-every 4"
STEPS = 4
STAGES = {
    "train_classification": f"{SMALL} --out {{t}}/net",
    "make_cam": "--checkpoint {t}/net/model.pt --out {t}/cam",
    "make_affinity_labels": "--scores {t}/cam --out {t}/affinity_labels --jobs 2",
    "train_affinity": f"{SMALL} --radius 5 --labels {{t}}/affinity_labels --out {{t}}/affinity",
    "make_random_walk": "--scores {t}/cam --checkpoint {t}/affinity/model.pt --out {t}/rw "
    "--pad-to 64 --log2-steps 3",
    "make_pseudo_labels": "--scores {t}/rw --out {t}/pseudo --jobs 2",
    "train_segmentation": f"{SMALL} --labels {{t}}/pseudo --out {{t}}/segmentation",
    "predict": "--checkpoint {t}/segmentation/model.pt --out {t}/predictions --jobs 2 "
    "--crf-iterations 2",
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
    assert json.loads((root / "scores.json").read_text())["images"] == 8


@pytest.mark.parametrize("amp", CAPABILITIES)
@pytest.mark.parametrize("name", [n for n in STAGES if n.startswith("train")])
def test_no_step_waits_for_the_gpu(runs, name, amp):
    """A row of the log, a checkpoint and (under fp16) GradScaler's look at the gradients do."""
    waits = runs[amp][1][name].waits
    inside = [w for w in waits if not w.where.startswith("core/run/training.py")]
    allowed = [w for w in inside if not w.where.startswith(("core/run/", "train_"))]
    assert not allowed, allowed
    of_steps = [w for w in waits if ":update" in w.where]
    assert not of_steps


# Waits an image that inference cannot do without, by stage: the result's way to the host, and in
# the CRF the number of vertices of its lattice (two passes share one).
PER_IMAGE = {
    "make_cam": 1,
    "make_affinity_labels": 3,
    "make_random_walk": 1,
    "make_pseudo_labels": 3,
    "predict": 3,
}


@pytest.mark.parametrize("amp", CAPABILITIES)
@pytest.mark.parametrize("name", PER_IMAGE)
def test_inference_waits_for_its_results_alone(runs, name, amp):
    waits = [w for w in runs[amp][1][name].waits if "checkpoint" not in w.where]
    moving = [w for w in waits if w.where.startswith((f"{name}.py", "core/run/distributed"))]
    images = 8
    assert len(waits) - len(moving) <= PER_IMAGE[name] * images, waits
