"""Which samples a batch holds: the order of an epoch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from normcore.refusal import Refusal
from normcore.seeds import generator


def check_batch_size(batch_size: int, num_train: int) -> None:
    """Raise `Refusal` where a batch is larger than the training set."""
    if batch_size > num_train:
        raise Refusal(
            "batch-larger-than-data",
            f"a batch must fit into the training set, got batch_size {batch_size} and {num_train} training samples; "
            f"set batch_size to at most {num_train}",
        )


def shuffled(num_train: int, batch_size: int, *, seed: int, epoch: int) -> Tensor:
    """The numbers of the samples in each batch of an epoch, `(num_train // batch_size, batch_size)` on the CPU.

    Every sample at most once; what does not fill a batch is left out, other samples each epoch. The draw is that of the
    stream `(seed, "order", epoch)`.

    Example:
        >>> shuffled(7, 3, seed=0, epoch=0).shape
        torch.Size([2, 3])
    """
    shape = (num_train // batch_size, batch_size)
    order = torch.randperm(num_train, generator=generator("cpu", seed, "order", epoch))
    return order[: math.prod(shape)].view(shape)
