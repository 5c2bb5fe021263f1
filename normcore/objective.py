"""What a training minimizes, and what an evaluation counts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor
from torch.nn import functional

from normcore.menu.datasets import DataSpec

Loss = Callable[[Tensor, Tensor], Tensor]
"""From outputs and labels of a batch to a scalar."""


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """The squared error of outputs `(N, D)`, summed over outputs and samples (Santurkar et al. 2018, appendix A).

    A sum and not a mean: the loss of a linear net, and the lr that suits it, scale with the number of samples.

    Example:
        >>> import torch
        >>> squared_error(torch.zeros(2, 3), torch.ones(2, 3))
        tensor(6.)
    """
    return (outputs - targets).square().sum()


def loss_of(data: DataSpec, label_smoothing: float = 0.0) -> Loss:
    """Mean cross entropy where the labels are classes, summed squared error where they are targets.

    Args:
        data: What is learned.
        label_smoothing: Of the probability that a label gives to its class, the part that is spread evenly over
            all classes (Szegedy et al. 2016, section 7).
    """
    if data.task != "classification":
        return squared_error
    if label_smoothing == 0:
        return functional.cross_entropy
    return partial(functional.cross_entropy, label_smoothing=label_smoothing)


def hits(outputs: Tensor, labels: Tensor) -> Tensor:
    """Whether the largest output of a sample is that of its class: `(..., N, K)` and `(..., N)` to `(..., N)`."""
    return outputs.argmax(-1) == labels
