"""--init: a training that starts from a whole model.pt, and what of it starts anew."""

from __future__ import annotations

import train_classification
from core.errors import InputError
from core.method.networks import AffinityNet, Classifier, DeepLabV3Plus
from core.run import checkpoint, weights

import pytest
import torch
from conftest import SMALL, run_stage

NETWORKS = {
    "classification": lambda n: Classifier("resnet18", n),
    "affinity": lambda n: AffinityNet("resnet18"),
    "segmentation": lambda n: DeepLabV3Plus("resnet18", n + 1),
}


@pytest.fixture(params=NETWORKS)
def pair(request, tmp_path):
    """A saved network of classes a and b, and a maker of fresh ones."""
    made = NETWORKS[request.param](2)
    checkpoint.save_model(tmp_path / "model.pt", made, ["a", "b"])
    return made, NETWORKS[request.param], tmp_path / "model.pt"


def anew(network, other) -> list[str]:
    """Parameters beside the backbone's that are not the other's."""
    theirs = dict(other.named_parameters())
    return [
        name for name, p in network.named_parameters()
        if not name.startswith("backbone.")
        and not (p.shape == theirs[name].shape and torch.equal(p, theirs[name]))
    ]  # fmt: skip


def test_the_same_classes_take_all(pair, capsys):
    made, make, path = pair
    fresh = make(2)
    weights.take_rest(fresh, path, ["a", "b"])
    assert anew(fresh, made) == []
    assert capsys.readouterr().out.endswith("newly initialised: nothing\n")


@pytest.mark.parametrize("classes", [["b", "a"], ["a", "b", "c"]])
def test_layers_of_other_classes_start_anew(pair, classes, capsys):
    made, make, path = pair
    fresh = make(len(classes))
    weights.take_rest(fresh, path, classes)
    of_classes = [n for n, _ in fresh.named_parameters() if n.startswith(fresh.of_classes or "-")]
    assert set(anew(fresh, made)) == set(of_classes)
    said = capsys.readouterr().out
    assert all(name in said for name in of_classes)


def test_another_stage_gives_its_backbone(tmp_path, capsys):
    checkpoint.save_model(tmp_path / "model.pt", NETWORKS["classification"](2), ["a", "b"])
    weights.take_rest(NETWORKS["segmentation"](2), tmp_path / "model.pt", ["a", "b"])
    assert "the backbone and 0 more tensors are taken" in capsys.readouterr().out


def test_a_training_goes_on_with_a_new_schedule(inputs, tmp_path, capsys):
    """It starts at the model's loss, records what it started from, and refuses other files."""
    model = inputs / "classification" / "model.pt"
    given = ["--data", inputs / "data", "--split", "train", "--out", tmp_path / "more", *SMALL]
    run_stage(train_classification.main, *given, "--init", model, "--lr", 1e-9, "--epochs", 1)
    before, after = (torch.load(p, weights_only=True)["weights"] for p in
                     (model, tmp_path / "more" / "model.pt"))  # fmt: skip
    for name, value in before.items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(after[name], value, rtol=1e-4, atol=1e-6)
    assert "newly initialised: nothing" in capsys.readouterr().out
    torch.save(before, tmp_path / "bare.pt")
    with pytest.raises(InputError, match=r"bare\.pt"):
        run_stage(train_classification.main, *given, "--init", tmp_path / "bare.pt", "--overwrite")


def test_weights_that_are_no_tensors(tmp_path):
    network = NETWORKS["classification"](2)
    checkpoint.save_model(tmp_path / "model.pt", network, ["a", "b"])
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    state["weights"]["classifier.weight"] = 5
    torch.save(state, tmp_path / "model.pt")
    with pytest.raises(InputError, match="its weights are no tensors"):
        weights.take_rest(network, tmp_path / "model.pt", ["a", "b"])


def test_a_background_that_was_ruled_out(tmp_path, capsys):
    """Its layer starts again where there is a background, and stays where there is none."""
    made = NETWORKS["segmentation"](2)
    made.rule_out_background()
    checkpoint.save_model(tmp_path / "model.pt", made, ["a", "b"])
    for background in (True, False):
        fresh = NETWORKS["segmentation"](2)
        weights.take_rest(fresh, tmp_path / "model.pt", ["a", "b"], background)
        names = ["decoder.4.weight", "decoder.4.bias"] if background else []
        assert set(anew(fresh, made)) == set(names)


def test_init_is_another_start_than_weights(inputs, tmp_path, capsys):
    """Although the file is the same: the new layers are another matter."""
    model = inputs / "classification" / "model.pt"
    given = ["--data", inputs / "data", "--split", "train", "--out", tmp_path, *SMALL]
    words = ("--epochs", 1)
    run_stage(train_classification.main, *given, *words, "--init", model)
    assert f"all weights of {model}" in capsys.readouterr().out
    at = given.index("--weights")
    with pytest.raises(InputError, match="made with other inputs"):
        run_stage(
            train_classification.main, *given[:at], "--weights", model, *given[at + 2 :], *words
        )
    with pytest.raises(InputError, match="leave --weights out"):
        run_stage(train_classification.main, *given, "--init", model, "--weights", model)


def test_a_last_pt_is_no_start(inputs, tmp_path):
    with pytest.raises(InputError, match=r"last\.pt: .* give the model\.pt beside it"):
        weights.load(inputs / "classification/last.pt", "resnet18")
