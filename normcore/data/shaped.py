"""A batch of the right shape with nothing in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from normcore.data.batch import Batch

if TYPE_CHECKING:
    from normcore.menu.datasets import DataSpec


def shaped(data: DataSpec, size: int, dtype: torch.dtype) -> Batch:
    """A batch of a dataset on the meta device, where only shapes are worked out: nothing is allocated or read.

    Args:
        data: The dataset.
        size: N, the samples.
        dtype: Of inputs and targets; ids of tokens and classes are int64.

    Example:
        >>> from normcore.menu.datasets import Cifar10Spec
        >>> shaped(Cifar10Spec(), 2, torch.float32).inputs.shape
        torch.Size([2, 3, 32, 32])
    """
    tokens, classes = data.form == "tokens", data.task == "classification"
    shape = (size, *data.shape)
    return Batch(
        torch.empty(shape, device="meta", dtype=torch.long if tokens else dtype),
        torch.empty(size, device="meta", dtype=torch.long)
        if classes
        else torch.empty(size, data.num_outputs, device="meta", dtype=dtype),
        torch.empty(shape, device="meta", dtype=torch.bool) if tokens else None,
    )
