"""Which samples a batch holds: the order of an epoch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
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


def grouped(labels: NDArray[Any], batch_size: int, classes_per_batch: int, *, seed: int, epoch: int) -> Tensor:
    """Like `shuffled`, but each batch holds samples of only so many classes, as evenly as they go into it.

    Batches are then not independent draws of the data: the trial that batch renorm was made to stand (Ioffe 2017,
    section 4.3), where statistics of a batch are far from those of the population. Classes are drawn for each batch
    with a weight of what is left of them in the epoch, and first those without which what is left would no longer come
    out even. So no sample comes twice in an epoch wherever even batches allow that; else a class that has run out
    starts again from its first. Costs some 30 microseconds a batch, once an epoch.

    Args:
        labels: Classes of the training set, `(num_train,)`.
        batch_size: Samples in a batch.
        classes_per_batch: Or as many as there are, or samples in a batch, where these are fewer.
        seed: The job's.
        epoch: Passes done.

    Example:
        >>> labels = np.arange(12) % 4
        >>> [sorted(set(labels[batch].tolist())) for batch in grouped(labels, 6, 2, seed=0, epoch=0).numpy()]
        [[1, 2], [0, 3]]
    """
    draws = generator("cpu", seed, "order", epoch)
    order = torch.randperm(len(labels), generator=draws).numpy()
    _, ours = np.unique(labels, return_inverse=True)
    queues = np.split(order[np.argsort(ours[order], kind="stable")], np.bincount(ours).cumsum()[:-1])
    counts = np.array([len(queue) for queue in queues])
    num_batches, num_classes = len(labels) // batch_size, min(classes_per_batch, len(queues), batch_size)
    share, larger = divmod(batch_size, num_classes)
    most = share + (larger > 0)
    chances = (
        torch.rand(num_batches, len(queues), generator=draws, dtype=torch.float64).clamp_min_(1e-300).log().numpy()
    )

    used = np.zeros_like(counts)
    batches = np.empty((num_batches, batch_size), dtype=np.int64)
    for number, chance in enumerate(chances):
        left = counts - used
        turns = left // most
        # With e exponential, the largest of -e / w are a draw by weights w without replacement.
        favour = np.where(turns > 0, chance / np.maximum(left, 1), left)
        rank = (turns > 0).astype(int) + (turns >= num_batches - number)
        chosen = np.lexsort((favour, rank))[::-1][:num_classes]
        start = 0
        for place, group in enumerate(chosen):
            end = start + share + (place < larger)
            batches[number, start:end] = queues[group].take(
                np.arange(used[group], used[group] + end - start), mode="wrap"
            )
            used[group] += end - start
            start = end
    return torch.from_numpy(batches)
