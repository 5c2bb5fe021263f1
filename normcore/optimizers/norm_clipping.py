"""Clipping by the length of the whole gradient (Pascanu et al. 2013, arXiv:1211.5063, section 3.2)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


class NormClipping:
    """Keeps the gradient of all parameters together no longer than a limit: g <- g min(1, limit / ||g||).

    The direction stays; `AdaptiveClipping` turns it, since it looks at each unit. A gradient within the limit is not
    touched, bit for bit, there is no state, and the device decides without the host having to wait.

    Args:
        parameters: Their `.grad` are clipped.
        limit: The longest gradient.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> layer(torch.tensor([[3.0, 4.0]])).backward()
        >>> NormClipping(layer.parameters(), 2.5).clip()
        >>> layer.weight.grad
        tensor([[1.5000, 2.0000]])
    """

    def __init__(self, parameters: Iterable[nn.Parameter], limit: float) -> None:
        self._parameters, self._limit = list(parameters), limit

    @torch.no_grad()
    def clip(self) -> None:
        """Clip the gradients in place; to be called between the backward pass and the update."""
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        if gradients:
            length = torch.nn.utils.get_total_norm(gradients)
            torch._foreach_mul_(gradients, (self._limit / length).clamp_max(1.0))
