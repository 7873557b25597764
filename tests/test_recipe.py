"""The paper's table, written out: changing any one constant of the recipe fails the test it names.

Nothing here is derived from core/recipe.py.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from core import recipe

import pytest
from conftest import REPO

TRAINING = {
    "batch_size": 32,
    "crop": 512,
}
CRF = {
    "gaussian_sxy": 3.0,
    "gaussian_compat": 3.0,
    "bilateral_compat": 10.0,
    "gt_prob": 0.7,
    "min_prob": 0.00001,
    "many_labels": 21,
    "left_out": 0.1,
}
# fmt: off
THRESHOLDS = (
    0.05, 0.06, 0.07, 0.08, 0.09, 0.10, 0.11, 0.12, 0.13, 0.14, 0.15, 0.16, 0.17, 0.18, 0.19, 0.20,
    0.21, 0.22, 0.23, 0.24, 0.25, 0.26, 0.27, 0.28, 0.29, 0.30, 0.31, 0.32, 0.33, 0.34, 0.35, 0.36,
    0.37, 0.38, 0.39, 0.40, 0.41, 0.42, 0.43, 0.44, 0.45, 0.46, 0.47, 0.48, 0.49, 0.50, 0.51, 0.52,
    0.53, 0.54, 0.55, 0.56, 0.57, 0.58, 0.59, 0.60, 0.61, 0.62, 0.63, 0.64, 0.65, 0.66, 0.67, 0.68,
    0.69, 0.70, 0.71, 0.72, 0.73, 0.74, 0.75,
)
PAPER_THRESHOLDS = (
    0.05, 0.10, 0.15, 0.20, 0.25, 0.30, 0.35, 0.40, 0.45, 0.50, 0.55, 0.60, 0.65, 0.70, 0.75,
)
# fmt: on
TABLE: dict[str, dict[str, Any]] = {
    "DATA": {
        "classes": 20,
        "train_aug_images": 10582,
        "train_images": 1464,
        "val_images": 1449,
        "test_images": 1456,
        "ignore": 255,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
    },
    "BACKBONE": {"output_stride": 16, "resnest_dilation": 2},
    "OPTIMIZER": {
        "nesterov": True,
        "poly_power": 0.9,
        "rate_factors": (1, 2, 10, 20),
        "flip": 0.5,
    },
    "CLASSIFICATION": {
        **TRAINING,
        "epochs": 15,
        "lr": 0.1,
        "weight_decay": 0.0001,
        "momentum": 0.0001,
        "sides": (320, 640),
        "grid": 2,
        "alpha": 4.0,
        "alpha_ramp": 0.5,
    },
    "CAM": {
        "scales": (0.5, 1.0, 1.5, 2.0),
        "stride": 4,
        "high_res_multiple": 16,
        "epsilon": 0.00001,
    },
    "AFFINITY_LABELS": {
        "foreground_threshold": 0.40,
        "background_threshold": 0.10,
        "crf_iterations": 10,
    },
    "LABEL_CRF": {**CRF, "bilateral_sxy": 50.0, "bilateral_srgb": 5.0},
    "AFFINITY": {
        **TRAINING,
        "epochs": 3,
        "lr": 0.1,
        "weight_decay": 0.0001,
        "momentum": 0.0001,
        "sides": (320, 640),
        "edge_channels": 32,
        "norm_groups": 4,
        "radius": 10,
        "loss_weights": (0.25, 0.25, 0.5),
        "epsilon": 0.00001,
    },
    "RANDOM_WALK": {
        "pad_to": 512,
        "pad_multiple": 32,
        "radius": 5,
        "beta": 10.0,
        "log2_steps": 8,
    },
    "PSEUDO_LABELS": {"threshold": 0.35, "crf_iterations": 1},
    "SEGMENTATION": {
        **TRAINING,
        "epochs": 50,
        "lr": 0.007,
        "weight_decay": 0.00004,
        "momentum": 0.00004,
        "sides": (256, 1024),
        "aspp_rates": (6, 12, 18),
        "channels": 256,
        "skip_channels": 48,
        "norm_groups": 4,
        "aspp_dropout": 0.5,
        "decoder_dropouts": (0.5, 0.1),
    },
    "PREDICTION": {"scales": (0.5, 1.0, 1.5, 2.0), "crf_iterations": 10},
    "PROBABILITY_CRF": {**CRF, "bilateral_sxy": 80.0, "bilateral_srgb": 13.0},
    "EVALUATION": {"thresholds": THRESHOLDS, "paper_thresholds": PAPER_THRESHOLDS},
}
ROWS = [
    pytest.param(stage, name, value, id=f"{stage}.{name}")
    for stage, constants in TABLE.items()
    for name, value in constants.items()
]


@pytest.mark.parametrize(("stage", "name", "value"), ROWS)
def test_constant_is_the_papers(stage, name, value):
    found = getattr(getattr(recipe, stage), name)
    assert (type(found), found) == (type(value), value), f"core/recipe.py: {stage}.{name}"


def test_every_constant_is_in_the_table():
    found = {
        stage: {field.name for field in dataclasses.fields(constants)}
        for stage, constants in vars(recipe).items()
        if stage.isupper() and not isinstance(constants, type)
    }
    assert found == {stage: set(constants) for stage, constants in TABLE.items()}


@pytest.mark.parametrize("stage", TABLE)
def test_recipe_cannot_be_changed_at_run_time(stage):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(getattr(recipe, stage), next(iter(TABLE[stage])), None)


@pytest.mark.parametrize("split", ["train_aug", "train", "val", "test"])
def test_id_lists_have_the_recipes_length(split):
    ids = (REPO / "data" / f"{split}.txt").read_text().split()
    assert len(set(ids)) == len(ids) == getattr(recipe.DATA, f"{split}_images")
