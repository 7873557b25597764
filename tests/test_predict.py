"""predict.py: splits and pictures give the same masks, pictures of any size, every refusal."""

from __future__ import annotations

from pathlib import Path

import predict
from core.data import images
from core.errors import InputError
from core.method import segmentation
from core.method.networks import Classifier, DeepLabV3Plus
from core.run import artefacts, checkpoint, inference

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

CLASSES = ["disc", "square", "bar"]
COMMON = ["--device", "cpu", "--amp", "off", "--scales", "1.0", "--jobs", "1", "--workers", "0"]


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
    predict.main([str(a) for a in (*rest, *arguments)])


@pytest.mark.parametrize("crf", [[], ["--no-crf"]])
def test_pictures_and_a_split_give_the_same_masks(data_root, models, tmp_path, crf):
    split, out = tmp_path / "split", tmp_path / "out"
    run(split, models["segmentation"], "--data", data_root, "--split", "val", *crf)
    pictures = sorted((data_root / "JPEGImages").glob("val*.jpg"))
    run(out, models["segmentation"], *pictures, *crf)
    for picture in pictures:
        name = f"{picture.stem}.png"
        assert (out / name).read_bytes() == (split / name).read_bytes()
        assert (out / "overlays" / f"{picture.stem}.jpg").exists()
    assert (out / "overlays/legend.png").exists() and not (split / "overlays").exists()


def test_one_of_several_processes_draws_the_legend(data_root, models, tmp_path, monkeypatch):
    """On several machines two may write it at once, by one temporary name."""
    monkeypatch.setattr(predict.distributed, "is_main", lambda: False)
    (tmp_path / "out").mkdir()  # which the main one makes
    run(tmp_path / "out", models["segmentation"], data_root / "JPEGImages/val0.jpg", "--no-crf")
    assert [path.name for path in (tmp_path / "out/overlays").iterdir()] == ["val0.jpg"]


def test_how_many_images_are_computed_together():
    """As the option says, and fewer where a batch would leave a CPU's caches or a GPU's memory."""
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    for size, on_cpu, on_gpu in (
        ((128, 128), 4, 4),
        ((128, 256), 2, 4),
        ((375, 500), 1, 4),
        ((1024, 1024), 1, 4),
        ((3000, 4000), 1, 1),
    ):
        assert inference.together(4, size, cpu) == on_cpu
        assert inference.together(4, size, gpu) == on_gpu
    assert inference.together(2, (8, 8), cpu) == 2


def test_files_of_one_size_are_one_batch_whatever_their_form(tmp_path):
    """A JPEG is decoded at a half, one with bytes behind its end and a PNG are not."""
    noise = np.random.default_rng(0).integers(0, 256, (70, 98, 3)).astype(np.uint8)
    pictures = {name: tmp_path / name for name in ("a.jpg", "b.jpg", "c.png")}
    for path in pictures.values():
        Image.fromarray(noise).save(path)
    with open(pictures["b.jpg"], "ab") as file:
        file.write(b"more")
    gpu = torch.device("cuda")
    groups = inference.equal_size_batches(pictures, 4, gpu, lambda size: size)
    assert groups == [list(pictures)]
    cpu = torch.device("cpu")
    ((names, copies, size),) = inference.pyramids(pictures, groups, [1.0, 0.5], 49, 0, cpu, "a")
    assert (names, size) == (list(pictures), (70, 98))
    assert [tuple(c.shape) for c in copies] == [(3, 3, 35, 49), (3, 3, 18, 24)]


def test_cams_and_masks_of_a_classifier(data_root, models, tmp_path):
    out = tmp_path / "out"
    picture = data_root / "JPEGImages" / "val0.jpg"
    run(out, models["classifier"], picture, "--class-threshold", 0, "--no-crf")
    assert {p.stem for p in (out / "heat_maps/val0").iterdir()} == set(CLASSES)
    mask = np.array(Image.open(out / "val0.png"))
    assert mask.shape == (48, 64) and mask.max() <= 3
    run(out, models["classifier"], picture, "--class-threshold", 1, "--overwrite")
    assert len(list((out / "heat_maps/val0").iterdir())) == 1  # the likeliest; the others are gone


def test_names_that_meet(data_root, models, tmp_path):
    """A picture's name and a class of another's: each has heat maps of its own."""
    picture = Image.open(data_root / "JPEGImages/val0.jpg")
    for name in ("a", "a_hot"):
        picture.save(tmp_path / f"{name}.png")
    torch.manual_seed(0)
    network = Classifier("resnet18", 2)
    checkpoint.save_model(tmp_path / "model.pt", network, ["hot_dog", "dog"])
    out, given = tmp_path / "out", [tmp_path / "a.png", tmp_path / "a_hot.png"]
    run(out, tmp_path / "model.pt", *given, "--class-threshold", 0, "--no-crf")
    maps = sorted(str(p.relative_to(out / "heat_maps")) for p in out.rglob("*.jpg")
                  if "heat_maps" in p.parts)  # fmt: skip
    assert maps == ["a/dog.jpg", "a/hot_dog.jpg", "a_hot/dog.jpg", "a_hot/hot_dog.jpg"]
    (out / "run.json").write_text((out / "run.json").read_text().replace("true", "false"))
    for folder in ("overlays", "heat_maps/a"):
        (out / folder / ".b.jpg.7.tmp").touch()  # of a start that was killed
    run(out, tmp_path / "model.pt", *given, "--class-threshold", 0, "--no-crf", "--overwrite")
    assert not list(out.rglob(".*.tmp"))


def test_a_band_at_a_time_is_the_whole_interpolation():
    maps = torch.rand(5, 37, 23, generator=torch.Generator().manual_seed(0))
    for size in ((150, 91), (37, 23), (300, 23), (20, 11)):
        whole = F.interpolate(maps[None], size, mode="bilinear")[0]
        label = segmentation.argmax_at_size(maps, size).numpy()
        top = whole.topk(2, 0).values
        clear = (top[0] - top[1] > 1e-5).numpy()
        assert label.shape == size and clear.mean() > 0.99
        assert (label == whole.argmax(0).numpy())[clear].all()


def test_large_pictures_are_computed_small_and_returned_large(data_root, models, tmp_path):
    """What the network sees is bounded; a picture that is no larger is not touched."""
    image = np.zeros((300, 400, 3), np.uint8)
    assert images.fit(image, 40).shape == (30, 40, 3) and images.fit(image, 400) is image
    Image.fromarray(image).save(tmp_path / "large.png")
    seen = []
    forward = DeepLabV3Plus.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            DeepLabV3Plus, "forward", lambda s, x: seen.append(x.shape[2:]) or forward(s, x)
        )
        run(tmp_path / "out", models["segmentation"], tmp_path / "large.png", "--max-side", 40)
    assert [tuple(size) for size in seen] == [(30, 40)]
    assert Image.open(tmp_path / "out/large.png").size == (400, 300)


def test_bad_pictures_are_named_and_the_others_go_on(data_root, models, tmp_path, capsys):
    folder = data_root / "JPEGImages"
    for path in folder.glob("train*"):
        path.unlink()
    (folder / "val1.jpg").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("left alone")
    (folder / "gone.jpg").symlink_to("nowhere.jpg")
    out = tmp_path / "out"
    arguments = [models["segmentation"], folder, "--no-crf", "--max-side", 48]
    with pytest.raises(InputError, match="1 of 3 pictures left out, named above; the others are"):
        run(out, *arguments)
    said = capsys.readouterr().err
    with pytest.raises(InputError, match="1 of 3 pictures left out, named above; the others are"):
        run(out, *arguments)  # and no other end the second time
    assert "could not be read: val1" in capsys.readouterr().err
    assert "val1.jpg: not a readable" in said and "2 other files, no JPEG" in said
    assert sorted(p.stem for p in out.glob("*.png")) == ["val0", "val2"]
    made = artefacts.read(out, "labels", CLASSES, ["val0", "val2"])  # finished, without the other
    assert made["results"]["warnings"] == ["left out, 1 that could not be read: val1"]
    Image.new("RGB", (30, 20)).save(folder / "val1.jpg")
    with pytest.raises(InputError, match="pictures"):  # other pictures than those it began with
        run(out, *arguments)
    run(out, *arguments, "--stale", "redo")
    assert len(list(out.glob("*.png"))) == 3
    run(out, *arguments)
    assert "nothing to do" in capsys.readouterr().out


def test_a_split_with_a_bad_picture_stays_unfinished(data_root, models, tmp_path):
    (data_root / "JPEGImages" / "val1.jpg").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"1 of 3 pictures left out.*--overwrite"):
        run(tmp_path / "out", models["segmentation"], "--data", data_root, "--no-crf")
    with pytest.raises(InputError, match="not finished"):
        artefacts.read(tmp_path / "out", "labels", CLASSES)


def test_refusals(data_root, models, tmp_path):
    picture = data_root / "JPEGImages" / "val0.jpg"
    (tmp_path / "other").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "other" / "val0.png")
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"would both become val0\.png"):
        run(out, models["segmentation"], picture, tmp_path / "other")
    with pytest.raises(InputError, match="no such file or folder"):
        run(out, models["segmentation"], tmp_path / "nowhere.jpg")
    with pytest.raises(InputError, match="either pictures and folders, or --data"):
        run(out, models["segmentation"], picture, "--data", data_root)
    with pytest.raises(InputError, match="either pictures and folders, or --data"):
        run(out, models["segmentation"])
    with pytest.raises(SystemExit):
        run(out, models["segmentation"], picture, "--scales", "0")
    (data_root / "classes.txt").write_text("disc\nbar\nsquare\n")
    with pytest.raises(InputError, match="number 2 was 'square', in the data set it is 'bar'"):
        run(out, models["segmentation"], "--data", data_root)
    assert not out.exists()
    run(out, models["segmentation"], picture, picture.parent / "val0.jpg", "--no-crf")  # once
