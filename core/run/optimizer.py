"""Which parameters are trained at which rate, and how the rate falls."""

from typing import Any

from core import recipe

import torch
from torch import nn


def poly_lr(step: int, max_step: int, base: float) -> float:
    """base * (1 - step / max_step) ** power; from the last step on it stays as it is."""
    return base * (1 - min(step, max_step - 1) / max_step) ** recipe.CLASSIFICATION.poly_power


def parameter_groups(network: nn.Module, weight_decay: float, pretrained: bool) -> list[dict]:
    """The recipe's four groups: pretrained x1, biases x2, new layers x10, their biases x20.

    "weight" and "bias" go by parameter name, BatchNorm included; the backbone is what is
    pretrained, and without pretrained weights every layer is new. Biases have no weight decay.
    Each group carries its factor as `scale`.
    """
    kinds = [(new, bias) for new in (False, True) for bias in (False, True)]
    groups: dict[tuple[bool, bool], dict[str, Any]] = {
        (new, bias): {"params": [], "scale": factor, "weight_decay": 0 if bias else weight_decay}
        for (new, bias), factor in zip(kinds, recipe.CLASSIFICATION.rate_factors, strict=True)
    }
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            new = not (pretrained and name.startswith("backbone."))
            groups[new, name.endswith("bias")]["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]


def one_group(network: nn.Module, weight_decay: float) -> list[dict]:
    """All that is trained in one group at the base rate: the affinity network's recipe."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    return [{"params": parameters, "scale": 1, "weight_decay": weight_decay}]


def sgd(groups: list[dict], lr: float, momentum: float, fused: bool) -> torch.optim.SGD:
    """The recipe's optimiser. With `fused`, one CUDA kernel a group."""
    nesterov = recipe.CLASSIFICATION.nesterov and momentum > 0
    return torch.optim.SGD(groups, lr, momentum, nesterov=nesterov, fused=fused or None)
