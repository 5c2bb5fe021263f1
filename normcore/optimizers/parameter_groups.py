"""Which parameters weight decay shrinks."""

from __future__ import annotations

from typing import Any

from torch import nn

from normcore.norms.norm import Norm


def parameter_groups(model: nn.Module, weight_decay: float, *, decay_norm_parameters: bool) -> list[dict[str, Any]]:
    """The model's parameters for an optimizer, those of its norms in a group of their own without weight decay.

    A norm makes the loss invariant to the scale of the weights before it, but not to its own scale and shift: decay
    regularizes the former through the effective lr and pulls the latter to zero. One group where nothing would differ,
    since each group costs the fused kernels a launch.

    Example:
        >>> from normcore.norms.batch import BatchNorm
        >>> model = nn.Sequential(nn.Linear(2, 3), BatchNorm(3))
        >>> groups = parameter_groups(model, 0.1, decay_norm_parameters=False)
        >>> [(len(group["params"]), group["weight_decay"]) for group in groups]
        [(2, 0.1), (2, 0.0)]
    """
    parameters = list(model.parameters())
    if weight_decay == 0 or decay_norm_parameters:
        return [{"params": parameters, "weight_decay": weight_decay}]
    of_norms = {id(p) for module in model.modules() if isinstance(module, Norm) for p in module.parameters()}
    groups = [
        {"params": [p for p in parameters if id(p) not in of_norms], "weight_decay": weight_decay},
        {"params": [p for p in parameters if id(p) in of_norms], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
