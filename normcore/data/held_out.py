"""A test set for images that come without one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def num_held_out(count: int, share: float) -> int:
    """How many of `count` images are held out: the share, rounded, but at least one, and never all.

    Example:
        >>> num_held_out(10, 0.25), num_held_out(10, 0.01), num_held_out(2, 0.99)
        (2, 1, 1)
    """
    return max(1, min(count - 1, round(count * share)))


def split(count: int, share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The numbers of the images that are trained on and of those that are held out, each in order.

    The choice is that of the stream `(seed, "held_out")`.

    Example:
        >>> train, test = split(10, 0.25, seed=0)
        >>> len(train), len(test), sorted({*train.tolist(), *test.tolist()}) == list(range(10))
        (8, 2, True)
    """
    import torch

    from normcore.seeds import generator

    chosen = torch.randperm(count, generator=generator("cpu", seed, "held_out")).numpy()
    cut = num_held_out(count, share)
    return np.sort(chosen[cut:]), np.sort(chosen[:cut])
