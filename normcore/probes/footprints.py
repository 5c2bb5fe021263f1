"""Leaving a model as it was found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def no_footprints(model: nn.Module) -> Iterator[list[Tensor]]:
    """A scope in which a model may be moved, run in any mode and differentiated, and that then restores it bit for bit.

    Restored are parameters, buffers (`num_batches_tracked` too), gradients, which parameters have one and which modules
    are in training mode, and torch's global generators, also when the scope is left by an error. Inside, gradients
    start as None, so that a backward pass neither adds to the caller's nor writes into them.

    Values are copied back from a copy: walking back by the opposite steps would leave rounding errors. The scope yields
    that copy of the parameters, in the order of `model.parameters()`. Costs one copy of the model's memory.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> before = model.weight.clone()
        >>> with no_footprints(model), torch.no_grad():
        ...     _ = model.weight.add_(1.0)
        >>> bool((model.weight == before).all())
        True
    """
    parameters, modes = list(model.parameters()), [(module, module.training) for module in model.modules()]
    tensors = [*parameters, *model.buffers()]
    with torch.no_grad():
        saved = [tensor.clone() for tensor in tensors]
    gradients = [(parameter, parameter.grad, parameter.requires_grad) for parameter in parameters]
    devices = {tensor.device.index for tensor in tensors if tensor.is_cuda}
    with torch.random.fork_rng(devices=devices):
        try:
            for parameter in parameters:
                parameter.grad = None
            yield saved[: len(parameters)]
        finally:
            with torch.no_grad():
                torch._foreach_copy_(tensors, saved)
            for parameter, gradient, required in gradients:
                parameter.requires_grad_(required).grad = gradient
            for module, training in modes:
                module.training = training
