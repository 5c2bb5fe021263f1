"""Which parameters weight decay shrinks, and which learn slower."""

from __future__ import annotations

from typing import Any

from torch import nn

from normcore.norms.norm import Norm
from normcore.weights.fixup import Scalar
from normcore.weights.weight import Reparametrization


def parameter_groups(model: nn.Module, weight_decay: float, *, decay_norm_parameters: bool) -> list[dict[str, Any]]:
    """The model's parameters for an optimizer, in groups of the same weight decay and the same multiple of the lr.

    A norm makes the loss invariant to the scale of the weights before it, but not to its own scale and shift: decay
    regularizes the former through the effective lr and pulls the latter to zero. The same holds of a weight method and
    the gains it learns. So these are not decayed unless asked, nor are the numbers of Fixup, which learn at a fraction
    of the lr. As few groups as there are differences, since each costs the fused kernels a launch; those who set the lr
    multiply it by the group's `lr_multiple`.

    Example:
        >>> from normcore.norms.batch import BatchNorm
        >>> model = nn.Sequential(nn.Linear(2, 3), BatchNorm(3))
        >>> groups = parameter_groups(model, 0.1, decay_norm_parameters=False)
        >>> [(len(group["params"]), group["weight_decay"], group["lr_multiple"]) for group in groups]
        [(2, 0.1, 1.0), (2, 0.0, 1.0)]
    """
    spared = set() if decay_norm_parameters else _ids(model, Norm, Reparametrization, Scalar)
    slow = _ids(model, Scalar)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        decay = 0.0 if id(parameter) in spared else weight_decay
        lr_multiple = Scalar.lr_multiple if id(parameter) in slow else 1.0
        groups.setdefault((decay, lr_multiple), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": decay, "lr_multiple": lr_multiple}
        for (decay, lr_multiple), parameters in groups.items()
    ]


def _ids(model: nn.Module, *kinds: type[nn.Module]) -> set[int]:
    return {id(p) for module in model.modules() if isinstance(module, kinds) for p in module.parameters()}
