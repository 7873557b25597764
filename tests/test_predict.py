"""tools/predict.py: the same masks as evaluate.py, pictures of any size, every refusal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import evaluate
from core.errors import InputError
from core.method.networks import Classifier, DeepLabV3Plus
from core.run import checkpoint
from tools import predict

CLASSES = ["disc", "square", "bar"]
COMMON = ["--device", "cpu", "--amp", "off", "--scales", "1.0"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A segmentation network and a classifier with random weights."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    networks = {
        "segmentation": DeepLabV3Plus("resnet18", 4),
        "classifier": Classifier("resnet18", 3),
    }
    for name, network in networks.items():
        checkpoint.save_model(folder / f"{name}.pt", network, CLASSES)
    return {name: folder / f"{name}.pt" for name in networks}


def run(out: Path, model: Path, *arguments: object) -> None:
    rest = ["--checkpoint", model, "--out", out, *COMMON]
    predict.main([str(a) for a in (*arguments, *rest)])


@pytest.mark.parametrize("crf", [[], ["--no-crf"]])
def test_masks_are_those_of_evaluate(data_root, models, tmp_path, crf):
    kept, out = tmp_path / "kept", tmp_path / "out"
    arguments = ["--data", data_root, "--checkpoint", models["segmentation"], "--split", "val"]
    arguments += ["--save-predictions", kept, "--batch-images", 1, "--jobs", 1, "--workers", 0]
    evaluate.main([str(a) for a in [*arguments, *COMMON, *crf]])
    pictures = sorted((data_root / "JPEGImages").glob("val*.jpg"))
    run(out, models["segmentation"], *pictures, *crf)
    for picture in pictures:
        name = f"{picture.stem}.png"
        assert (out / "masks" / name).read_bytes() == (kept / name).read_bytes()
        assert (out / "overlays" / f"{picture.stem}.jpg").exists()
    assert (out / "legend.png").exists()


def test_cams_and_masks_of_a_classifier(data_root, models, tmp_path):
    out = tmp_path / "out"
    picture = data_root / "JPEGImages" / "val0.jpg"
    arguments = [picture, "--cam", "--class-threshold", 0, "--no-crf"]
    run(out, models["classifier"], *arguments)
    assert {p.name for p in (out / "cams").iterdir()} == {f"val0_{c}.jpg" for c in CLASSES}
    mask = np.array(Image.open(out / "masks" / "val0.png"))
    assert mask.shape == (48, 64) and mask.max() <= 3
    run(out, models["classifier"], *arguments[:2], "--class-threshold", 1, "--overwrite")
    assert len(list((out / "cams").iterdir())) == 1  # the likeliest; the others are gone


def test_a_band_at_a_time_is_the_whole_interpolation():
    maps = torch.rand(5, 37, 23, generator=torch.Generator().manual_seed(0))
    for size in ((150, 91), (37, 23), (300, 23), (20, 11)):
        whole = F.interpolate(maps[None], size, mode="bilinear")[0]
        label = predict.argmax_at_size(maps, size)
        top = whole.topk(2, 0).values
        clear = (top[0] - top[1] > 1e-5).numpy()
        assert label.shape == size and clear.mean() > 0.99
        assert (label == whole.argmax(0).numpy())[clear].all()


def test_large_pictures_are_computed_small_and_returned_large(models, tmp_path):
    seen = []

    class Network(torch.nn.Module):
        def forward(self, images):
            seen.append(tuple(images.shape[2:]))
            return torch.stack([images.mean(1), -images.mean(1)], 1)

    image = np.zeros((300, 400, 3), np.uint8)
    image[:, 200:] = 255
    how = predict.Options(torch.device("cpu"), (1.0,), max_side=40, crf=False)
    label = predict.segment(Network(), image, how)
    assert seen == [(30, 40)] and label.shape == (300, 400)
    assert (label[:, :190] == 1).all() and (label[:, 210:] == 0).all()


def test_bad_pictures_are_named_and_the_others_go_on(data_root, models, tmp_path, capsys):
    folder = data_root / "JPEGImages"
    for path in folder.glob("train*"):
        path.unlink()
    (folder / "val1.jpg").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("left alone")
    out = tmp_path / "out"
    arguments = [models["segmentation"], folder, "--no-crf", "--max-side", 48]
    with pytest.raises(InputError, match="1 of 3 pictures"):
        run(out, *arguments)
    assert "val1.jpg: not a readable" in capsys.readouterr().err
    assert len(list((out / "masks").iterdir())) == 2
    Image.new("RGB", (30, 20)).save(folder / "val1.jpg")
    with pytest.raises(InputError, match="pictures"):  # other pictures than those it began with
        run(out, *arguments)
    run(out, *arguments, "--stale", "redo")
    assert len(list((out / "masks").iterdir())) == 3
    run(out, *arguments)
    assert "nothing to do" in capsys.readouterr().out


def test_refusals(data_root, models, tmp_path):
    picture = data_root / "JPEGImages" / "val0.jpg"
    (tmp_path / "other").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "other" / "val0.png")
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"would both become val0\.png"):
        run(out, models["segmentation"], picture, tmp_path / "other")
    with pytest.raises(InputError, match="no such file or folder"):
        run(out, models["segmentation"], tmp_path / "nowhere.jpg")
    with pytest.raises(InputError, match="holds a Classifier"):
        run(out, models["classifier"], picture)
    with pytest.raises(InputError, match="--scales"):
        common = ["--checkpoint", str(models["segmentation"]), "--out", str(out)]
        predict.main([str(picture), *common, "--scales", "0"])
    assert not out.exists()
    run(out, models["segmentation"], picture, picture.parent / "val0.jpg", "--no-crf")  # once
