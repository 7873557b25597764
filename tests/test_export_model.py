"""tools/export_model.py: other programs get the same maps, and the card's own words work."""

import json
import re
import subprocess
import sys
from pathlib import Path

from core.data.transforms import normalize
from core.errors import InputError
from core.method.networks import AffinityNet, Classifier, DeepLabV3Plus
from core.run import checkpoint
from tools import export_model

import numpy as np
import pytest
import torch
from conftest import REPO
from PIL import Image

CLASSES = ["disc", "größe"]
NETWORKS = {
    "Classifier": lambda: Classifier("resnet18", 2),
    "AffinityNet": lambda: AffinityNet("resnet18"),
    "DeepLabV3Plus": lambda: DeepLabV3Plus("resnet18", 3),
    "of timm": lambda: pytest.importorskip("timm") and Classifier("timm:test_efficientnet", 2),
}


@pytest.fixture(params=NETWORKS)
def model(request, tmp_path) -> Path:
    """A model.pt with statistics that are not those of a start."""
    torch.manual_seed(0)
    network = NETWORKS[request.param]()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.8, 1.2)
    checkpoint.save_model(tmp_path / "model.pt", network, CLASSES)
    return tmp_path / "model.pt"


def snippets(card: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)


def test_every_network(model, tmp_path):
    """ONNX at sizes that the tool did not try; the card's snippets, run as they stand."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra `export`")
    out = tmp_path / "new" / "export"
    export_model.main([str(model), "--out", str(out)])
    names = {"README.md", "config.json", "model.onnx", "model.safetensors"}
    assert {path.name for path in out.iterdir()} == names
    assert [path.name for path in out.parent.iterdir()] == ["export"]  # nothing temporary
    network = checkpoint.load_model(model, list(export_model.OUTPUTS), CLASSES)
    session = onnxruntime.InferenceSession(str(out / "model.onnx"))
    for shape in ((1, 3, 33, 47), (3, 3, 128, 96), (1, 3, 200, 129)):
        image = torch.randint(0, 256, shape, dtype=torch.uint8)
        with torch.no_grad():
            ours = network(normalize(image)).numpy()
        (theirs,) = session.run(None, {"image": image.numpy()})
        assert theirs.shape == ours.shape
        assert abs(theirs - ours).max() <= 1e-3
    assert json.loads((out / "config.json").read_text())["classes"] == CLASSES

    Image.fromarray(np.zeros((120, 160, 3), np.uint8)).save(out / "picture.jpg")
    card = (out / "README.md").read_text(encoding="utf-8")
    output = export_model.OUTPUTS[type(network)][0]
    with_onnx, with_torch = (code.replace(f"{output} =", "got =") for code in snippets(card))
    with_onnx = with_onnx.replace(f"({output},) =", "(got,) =")
    ends = []
    for code in (with_onnx, with_torch):
        code += "\nnp.save('got.npy', np.asarray(got))"
        command = [sys.executable, "-c", f"import sys; sys.path.append({str(REPO)!r})\n"
                   f"import numpy as np\n{code}"]  # fmt: skip
        subprocess.run(command, cwd=out, check=True, timeout=120)
        ends.append(np.load(out / "got.npy"))
    assert abs(ends[0] - ends[1]).max() <= 1e-3


def test_a_difference_is_refused(tmp_path, monkeypatch):
    """Nothing is left where the two do not agree."""
    pytest.importorskip("onnxruntime", reason="needs the extra `export`")
    checkpoint.save_model(tmp_path / "model.pt", Classifier("resnet18", 2), CLASSES)
    monkeypatch.setattr(export_model, "TOLERANCE", 1e-12)
    with pytest.raises(InputError, match=r"model\.onnx differs from PyTorch by"):
        export_model.main([str(tmp_path / "model.pt"), "--out", str(tmp_path / "out")])
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_a_folder_in_the_way(tmp_path):
    pytest.importorskip("onnxruntime", reason="needs the extra `export`")
    with pytest.raises(InputError, match="exists already; choose a new folder"):
        export_model.main([str(tmp_path / "model.pt"), "--out", str(tmp_path)])


def test_no_model(tmp_path):
    pytest.importorskip("onnxruntime", reason="needs the extra `export`")
    with pytest.raises(InputError, match=r"model\.pt: no such"):
        export_model.main([str(tmp_path), "--out", str(tmp_path / "out")])


@pytest.mark.parametrize("name", ["onnxruntime", "onnxscript", "safetensors"])
def test_a_missing_package(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, f"{name}.torch", None)
    with pytest.raises(InputError, match=r"exporting a model needs .*: pip install onnx "):
        export_model.main([str(tmp_path / "model.pt"), "--out", str(tmp_path / "out")])


def test_the_card_tells_the_run():
    record = {"started": "2026", "seconds": 3.0, "processes": 1, "device": "cpu",
              "settings": {"lr": 0.1, "seed": 7}, "git": "abc"}  # fmt: skip
    words = export_model.describe_training(record)
    assert "* settings: lr 0.1, seed 7" in words and "3.0 s on 1 x cpu" in words
    assert "nothing is known" in export_model.describe_training({})
