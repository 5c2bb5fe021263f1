"""Norms that say how well their own arithmetic went."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn


@runtime_checkable
class Diagnoses(Protocol):
    """A layer that knows how well its last training pass went in numbers."""

    def diagnosis(self) -> dict[str, Tensor]:
        """Numbers of the last training pass by name, each the larger the worse, on the layer's device."""
        ...


def worst_diagnoses(model: nn.Module) -> dict[str, float]:
    """The largest of each number that any layer of a model gives; none where no layer gives any. Waits for the device.

    A number that is not finite is the largest: NaN before infinity.

    Example:
        >>> from normcore.norms.iterative import IterativeNorm
        >>> model = nn.Sequential(nn.Linear(2, 4), IterativeNorm(4, channels_per_group=4))
        >>> _ = model(torch.randn(50, 2))
        >>> 0 < worst_diagnoses(model)["newton_residual"] < 1
        True
    """
    seen: dict[str, list[Tensor]] = {}
    for module in model.modules():
        if isinstance(module, Diagnoses):
            for name, value in module.diagnosis().items():
                seen.setdefault(name, []).append(value.detach().double())
    return {name: torch.stack(values).max().item() for name, values in seen.items()}
