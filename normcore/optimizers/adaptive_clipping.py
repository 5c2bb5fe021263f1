"""Adaptive gradient clipping (Brock et al. 2021, arXiv:2102.06171, section 4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normcore.weights.weight import inputs_of

EPS = 1e-3
"""Shortest length that weights are taken to have, lest those that start at zero never move."""

TINY = 1e-6
"""Shortest length that a gradient is divided by."""


class AdaptiveClipping:
    """Keeps each output unit's gradient no longer than a multiple of its weights.

        g <- g min(1, clipping max(||w||, eps) / ||g||)

    w and g are the weights of an output unit and their gradient: a row of a linear layer's matrix, a filter of a
    convolution. Parameters of fewer dimensions, biases and gains among them, count as one unit. The classifier is left
    alone, as in the paper. The ratio is that of an update at the lr one to what it updates, so the same clipping suits
    layers of any scale, and a gradient within it is not touched, bit for bit. There is no state, and the device decides
    without the host having to wait.

    Args:
        model: Its parameters' `.grad` are clipped.
        clipping: lambda, the largest ratio of lengths; the paper's are 0.01 to 0.16, smaller for larger batches.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> _ = nn.init.constant_(layer.weight, 3.0)
        >>> layer(torch.full((1, 2), 5.0)).backward()
        >>> AdaptiveClipping(layer, 0.5).clip()
        >>> layer.weight.grad
        tensor([[1.5000, 1.5000]])
    """

    def __init__(self, model: nn.Module, clipping: float) -> None:
        classifier = getattr(model, "classifier", None)
        spared = {id(parameter) for parameter in classifier.parameters()} if classifier is not None else set()
        self._parameters = [parameter for parameter in model.parameters() if id(parameter) not in spared]
        self._clipping = clipping

    @torch.no_grad()
    def clip(self) -> None:
        """Clip the gradients in place; to be called between the backward pass and the update."""
        parameters = [parameter for parameter in self._parameters if parameter.grad is not None]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if not gradients:
            return
        factors, lengths = ([_unit_lengths(tensor) for tensor in tensors] for tensors in (parameters, gradients))
        torch._foreach_clamp_min_(factors, EPS)
        torch._foreach_mul_(factors, self._clipping)
        torch._foreach_clamp_min_(lengths, TINY)
        torch._foreach_div_(factors, lengths)
        torch._foreach_clamp_max_(factors, 1.0)
        torch._foreach_mul_(gradients, factors)


def _unit_lengths(tensor: Tensor) -> Tensor:
    dims = inputs_of(tensor) if tensor.dim() > 1 else None
    lengths: Tensor = torch.linalg.vector_norm(tensor, dim=dims, keepdim=True)
    return lengths
