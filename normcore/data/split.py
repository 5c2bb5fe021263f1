"""What is held out of a training set, and which of its labels are made wrong."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from normcore.data.arrays import Arrays, Samples
from normcore.data.image_set import ImageSets
from normcore.seeds import generator


def hold_out(arrays: Arrays, count: int, *, seed: int) -> tuple[Arrays, Samples]:
    """The arrays without `count` training samples, and these; both in the order that they had.

    Drawn from the stream `(seed, "split")`, whatever the count: a larger validation set holds every smaller one. The
    test set stays as it is.

    Example:
        >>> import numpy as np
        >>> x, y = np.arange(8, dtype=np.float64).reshape(4, 2), np.arange(4)
        >>> rest, held = hold_out(Arrays(x, y, x, y), 1, seed=0)
        >>> len(rest.train_labels), len(held), sorted([*rest.train_labels, *held.labels]) == [0, 1, 2, 3]
        (3, 1, True)
    """
    kept, held = divided(len(arrays.train_labels), count, seed=seed)
    inputs, labels = arrays.train_inputs, arrays.train_labels
    rest = Arrays(inputs[kept], labels[kept], arrays.test_inputs, arrays.test_labels)
    return rest, Samples(inputs[held], labels[held])


def hold_out_images(sets: ImageSets, count: int, *, seed: int) -> ImageSets:
    """The same of images that are not decoded yet: the same ones are held out, as the validation set."""
    kept, held = divided(len(sets.train.labels), count, seed=seed)
    name = f"{sets.kept.name}-less-{count}"
    return replace(sets, train=sets.train.only(kept), validation=sets.train.only(held), kept=sets.kept.with_name(name))


def divided(num_samples: int, count: int, *, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The numbers of the samples that stay and of the `count` that are held out, each in order."""
    order = torch.randperm(num_samples, generator=generator("cpu", seed, "split"))
    return order[count:].sort().values.numpy(), order[:count].sort().values.numpy()


def mislabel(labels: NDArray[Any], share: float, num_classes: int, *, seed: int) -> NDArray[Any]:
    """A copy of the classes `(N,)` in which `round(share * N)` are replaced by one of the others, each as likely.

    Drawn from the stream `(seed, "label_noise")`, whatever the share: with a larger one, labels that were wrong stay
    wrong in the same way. At a share of `1 - 1 / num_classes` labels say nothing of their samples.

    Example:
        >>> import numpy as np
        >>> int((mislabel(np.zeros(10, dtype=np.int64), 0.3, 4, seed=0) > 0).sum())
        3
    """
    draws = generator("cpu", seed, "label_noise")
    wrong = torch.randperm(len(labels), generator=draws).numpy()[: round(share * len(labels))]
    shifts = torch.randint(1, num_classes, (len(labels),), generator=draws).numpy()
    noisy = labels.copy()
    noisy[wrong] = (labels[wrong] + shifts[wrong]) % num_classes
    return noisy
