"""Images read and decoded ahead of time, by processes of their own."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import Generator
from torch.utils.data import DataLoader, Dataset, Sampler

from normcore.data.image_set import ImageSet
from normcore.refusal import Refusal

PR_SET_PDEATHSIG = 1


def read_ahead(images: ImageSet, batches: Iterable[Sequence[int]], *, workers: int = 2) -> Iterator[NDArray[np.uint8]]:
    """The images of each batch of numbers, `(N, C, size, size)`, in order.

    The processes end with the iterator, and with the process that asked for them. Torch's global generator is left
    alone.

    Args:
        images: What is read.
        batches: May be endless.
        workers: Processes, at most as many as there are processors; none reads when it is asked.

    Raises:
        Refusal: An image cannot be read.
    """
    workers = min(workers, os.cpu_count() or 1)
    loader: DataLoader[Any] = DataLoader(
        _Batches(images),
        batch_sampler=cast("Sampler[list[int]]", batches),
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=_begin if workers else None,
        generator=Generator(),
    )
    for found in loader:
        if isinstance(found, tuple):
            raise Refusal(*found)
        yield found


class _Batches(Dataset[Any]):
    """Whole batches of an image set, as torch's loader asks for them.

    They travel as numpy arrays: tensors would go through shared memory, of which a container has too little. A refusal
    travels as its code and its sentence, since an exception would arrive as another one.
    """

    def __init__(self, images: ImageSet) -> None:
        self._images = images

    def __getitems__(self, numbers: Sequence[int]) -> NDArray[np.uint8] | tuple[str, str]:
        try:
            return self._images.images(numbers)
        except Refusal as refusal:
            return refusal.code, str(refusal)


def _as_it_is(found: Any) -> Any:
    return found


def _begin(_: int) -> None:
    # What the trainer does when it is asked to stop is not for its readers to do.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
