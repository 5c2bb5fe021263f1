"""No weight method: the control arm."""

from __future__ import annotations

from torch import nn


def apply(model: nn.Module) -> None:
    """Leave the weights of a model as they are.

    Example:
        >>> model = nn.Linear(2, 3)
        >>> apply(model)
        >>> [name for name, _ in model.named_parameters()]
        ['weight', 'bias']
    """
