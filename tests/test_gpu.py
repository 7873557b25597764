"""The method and every stage on a real GPU, against the CPU: skipped where there is none.

python -m pytest -q tests/test_gpu.py
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

from core.data.scores import Scores
from core.method import crf

import numpy as np
import pytest
import torch
from faults.stages import STAGES, contents, differing, said, wait_for
from PIL import Image
from test_crf import BOTH
from test_cuda import INFERENCE, TRAINING
from test_many_labels import scene

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings("error:Sparse"),  # torch's, once a process, of what we have checked
]
GPU = "cuda:0"
N_CLASSES = 3
WITHOUT_NETWORK = "affinity_labels", "pseudo"


@pytest.fixture(autouse=True)
def _float32() -> Iterator[None]:
    """No TF32, in which a GPU's convolutions otherwise round to 10 bits."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.fixture
def no_waits() -> Iterator[None]:
    """What makes the host wait for the GPU is an error."""
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("case", TRAINING)
def test_a_training_step_never_waits(case, no_waits):
    function, first, *others = TRAINING[case]
    here, there = first.clone().requires_grad_(), first.to(GPU).requires_grad_()
    moved = [tensor.to(GPU) for tensor in others]
    function(here, *others).backward()
    for _ in range(2):  # the first builds what is kept
        there.grad = None
        value = function(there, *moved)
        value.backward()
        torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(there.grad.cpu(), here.grad, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("case", INFERENCE)
def test_inference_never_waits(case, no_waits):
    function, *inputs = INFERENCE[case]
    moved = [tensor.to(GPU) for tensor in inputs]
    with torch.inference_mode():
        for _ in range(2):
            got = function(*moved)
            torch.cuda.set_sync_debug_mode("error")
        torch.cuda.set_sync_debug_mode("default")
        torch.testing.assert_close(got.cpu(), function(*inputs), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("n_labels", [3, 21, 81])
@pytest.mark.parametrize("backend", BOTH)
def test_the_crf_of_a_photograph(n_labels, backend):
    image, probs = scene(n_labels, (188, 250), lead=2)
    left_out = crf.may_leave_out(n_labels)
    there = crf.refine_probabilities(image, probs, 10, "torch", GPU, left_out)
    here = crf.refine_probabilities(image, probs, 10, backend, left_out=left_out)
    assert np.abs(there - here).max() <= 2e-3
    assert (there.argmax(0) == here.argmax(0)).mean() >= 0.9999


def outputs_agree(here: Path, there: Path, tolerance: float) -> None:
    """What a stage made of the same inputs on the CPU and on the GPU is one but for rounding."""
    if (there / "model.pt").exists():
        texts = [(folder / "log.jsonl").read_text().splitlines()[:2] for folder in (here, there)]
        for rows in zip(*texts, strict=True):  # before and after the first update
            one, two = (json.loads(row) for row in rows)
            assert one.keys() == two.keys()
            for key, value in one.items():
                assert abs(value - two[key]) <= tolerance * max(1, abs(value)), key
        return
    files = sorted(path.name for path in here.iterdir() if path.suffix in (".npz", ".png"))
    assert files == sorted(p.name for p in there.iterdir() if p.suffix in (".npz", ".png")) != []
    for file in files:
        if file.endswith(".npz"):
            one, two = (Scores.load(f / file, N_CLASSES).cam.astype(float) for f in (here, there))
            assert np.abs(one - two).max() <= tolerance, file
        else:
            labels = [np.array(Image.open(folder / file)) for folder in (here, there)]
            assert (labels[0] == labels[1]).mean() >= 1 - tolerance, file


# A stage, its --amp, and how far a value or what share of the pixels may be off.
# DeepLab's dropout draws on the device.
CASES = [(name, amp, 0.005 if amp == "off" and name != "segmentation" else 0.2) for name in STAGES
         for amp in (["off"] if name in WITHOUT_NETWORK else ["off", "bf16", "fp16"])]  # fmt: skip


@pytest.mark.parametrize(("name", "amp", "tolerance"), CASES)
def test_a_stage_makes_what_the_cpu_makes(name, amp, tolerance, inputs, tmp_path):
    stage = STAGES[name]
    options = [] if name in WITHOUT_NETWORK else ["--amp", amp]
    stage.run(inputs, tmp_path, "--device", "cuda", *options)
    here, there = (root / stage.folders[0] for root in (inputs, tmp_path))
    assert json.loads((there / "run.json").read_text())["device"] == GPU
    outputs_agree(here, there, tolerance)


@pytest.mark.parametrize("name", ["classification", "affinity", "segmentation"])
@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_a_stopped_training_goes_on_to_the_same_bytes(name, amp, inputs, tmp_path):
    stage, how = STAGES[name], ["--device", "cuda", "--amp", amp, "--deterministic"]
    how += ["--epochs", "20", "--save-every", "1"]
    outs = [tmp_path / "straight", tmp_path / "stopped"]
    for out in outs:
        out.mkdir()
        process = stage.start(inputs, out, *how)
        if out == outs[1]:
            wait_for(out / stage.folders[0] / "last.pt", process)
            process.send_signal(signal.SIGTERM)
            process.communicate()
            assert process.returncode == 128 + signal.SIGTERM
            process = stage.start(inputs, out, *how)
        errors = process.communicate()[1]
        assert process.returncode == 0, said(errors)
    assert differing(*(contents(out, stage) for out in outs)) == []
