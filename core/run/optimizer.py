"""Which parameters are trained at which rate, and how the rate falls."""

from typing import Any

from core.recipe import OPTIMIZER

import torch
from torch import nn


def poly_lr(step: int, max_step: int, base: float) -> float:
    """base * (1 - step / max_step) ** power; from the last step on it stays as it is."""
    return base * (1 - min(step, max_step - 1) / max_step) ** OPTIMIZER.poly_power


def parameter_groups(network: nn.Module, weight_decay: float, pretrained: bool) -> list[dict]:
    """The recipe's four groups: pretrained x1, biases x2, new layers x10, their biases x20.

    "weight" and "bias" go by parameter name, BatchNorm included; the backbone is what is
    pretrained, and without pretrained weights every layer is new. Biases have no weight decay.
    Each group carries its factor as `scale`.
    """
    groups: list[dict[str, Any]] = [
        {"params": [], "scale": factor, "weight_decay": 0 if number % 2 else weight_decay}
        for number, factor in enumerate(OPTIMIZER.rate_factors)  # 2 * new + bias
    ]
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            new = not (pretrained and name.startswith("backbone."))
            groups[2 * new + name.endswith("bias")]["params"].append(parameter)
    return [group for group in groups if group["params"]]


def one_group(network: nn.Module, weight_decay: float) -> list[dict]:
    """All that is trained in one group at the base rate: the affinity network's recipe."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    return [{"params": parameters, "scale": 1, "weight_decay": weight_decay}]


def sgd(groups: list[dict], lr: float, momentum: float, fused: bool) -> torch.optim.SGD:
    """The recipe's optimiser. With `fused`, one pass over a group."""
    nesterov = OPTIMIZER.nesterov and momentum > 0
    return torch.optim.SGD(groups, lr, momentum, nesterov=nesterov, fused=fused or None)
