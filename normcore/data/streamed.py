"""A dataset that is larger than memory, and its batches."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from normcore.data.batch import Batch
from normcore.data.image_loader import read_ahead
from normcore.data.image_set import ImageSet, ImageSets
from normcore.data.images import Augmentation, Normalization, counted, moments
from normcore.data.order import check_batch_size, grouped, shuffled
from normcore.seeds import generator

SAMPLE = 4096
"""Training images, at most, that mean and standard deviation are taken of."""

READ_BYTES = 64 * 2**20
"""Decoded images of a test or validation set, at most, that are read at once."""


class Streamed:
    """Images that are read and decoded as they are needed, in the batches of `normcore.data.dataset.Resident`.

    Order, crops and flips are drawn from the same streams, so a batch is a function of seed and step alone, and the
    same, bit for bit, as that of a resident dataset, as long as there are no more than `SAMPLE` training images: of
    more, mean and standard deviation are those of a sample, and kept in the cache. Steps that follow one another are
    read ahead by processes of their own; any other step is read when it is asked for. Images are augmented and
    normalized on the device.

    Args:
        sets: The images, with what is held out for validation.
        batch_size: Samples in a batch.
        seed: The job's seed.
        crop_padding: Pad training images by this many black pixels and cut out a random window of their size.
        flip: Mirror each training image left to right with probability one half.
        classes_per_batch: Fill each batch with this many classes, see `normcore.data.order.grouped`.
        device: Where batches go.
        dtype: Of the batches' inputs.
        workers: Processes that read ahead; with none, a batch is read when it is asked for.

    Raises:
        Refusal: The batch is larger than the training set, or an image cannot be read (also from the methods).

    Attributes:
        normalization: By the mean and the standard deviation of the training set, or of a sample of it.
        num_validation: Images held out of the training set; `num_train` and `num_test` likewise.
        steps_per_epoch: Whole batches in the training set.
    """

    def __init__(
        self,
        sets: ImageSets,
        *,
        batch_size: int,
        seed: int,
        crop_padding: int = 0,
        flip: bool = False,
        classes_per_batch: int | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        workers: int = 2,
    ) -> None:
        self.num_train, self.num_test = len(sets.train.labels), len(sets.test.labels)
        self.num_validation = 0 if sets.validation is None else len(sets.validation.labels)
        check_batch_size(batch_size, self.num_train)
        self.batch_size, self.seed = batch_size, seed
        self.steps_per_epoch = self.num_train // batch_size
        self._sets, self._device, self._workers = sets, torch.device(device), workers
        mean, std = _kept_moments(sets)
        self.normalization = Normalization.of_moments(mean, std, device, dtype)
        nothing = torch.empty((0, sets.train.channels, sets.train.size, sets.train.size), dtype=torch.uint8)
        self._augmentation = (
            Augmentation(nothing.to(device), seed=seed, crop_padding=crop_padding, flip=flip)
            if crop_padding or flip
            else None
        )
        self._epoch: int | None = None
        self._order_of = partial(_order_of, sets.train.labels, batch_size, classes_per_batch, seed)
        self._orders: dict[int, NDArray[np.int64]] = {}
        self._ahead: Iterator[NDArray[np.uint8]] | None = None
        self._next = 0
        self._last: tuple[int, NDArray[np.uint8]] | None = None

    def batch(self, step: int) -> Batch:
        """The training batch of a step.

        Args:
            step: Optimizer updates done so far; the first batch is that of step 0.
        """
        epoch, position = divmod(step, self.steps_per_epoch)
        if self._augmentation is not None and epoch != self._epoch:
            self._augmentation.draw(epoch, (self.steps_per_epoch, self.batch_size))
            self._epoch = epoch
        images = torch.from_numpy(self._read(step)).to(self._device)
        if self._augmentation is not None:
            images = self._augmentation.of(images, position)
        return self._batch(images, self._sets.train.labels[self._order(epoch)[position]])

    def test_batches(self, size: int = 1000) -> Iterator[Batch]:
        """The test set in order, in batches of at most `size`, normalized like the training set and not augmented."""
        return self._in_order(self._sets.test, size)

    def validation_batches(self, size: int = 1000) -> Iterator[Batch]:
        """What was held out of the training set, likewise; nothing where nothing was."""
        return iter(()) if self._sets.validation is None else self._in_order(self._sets.validation, size)

    def _in_order(self, held: ImageSet, size: int) -> Iterator[Batch]:
        count, size = len(held.labels), max(1, min(size, READ_BYTES // (held.channels * held.size**2)))
        numbers = [range(start, min(start + size, count)) for start in range(0, count, size)]
        read = read_ahead(held, numbers, workers=self._workers)
        for images, part in zip(read, numbers, strict=True):
            yield self._batch(torch.from_numpy(images).to(self._device), held.labels[part.start : part.stop])

    def _batch(self, images: Tensor, labels: NDArray[np.int64]) -> Batch:
        return Batch(self.normalization(images), torch.from_numpy(labels).to(self._device))

    def _read(self, step: int) -> NDArray[np.uint8]:
        """The images of a step. The one before is kept, since a probe looks at a batch before it is trained on."""
        if self._last is not None and self._last[0] == step:
            return self._last[1]
        if self._ahead is None:
            numbers = _numbers_from(step, self.steps_per_epoch, self._order_of)
            self._ahead, self._next = read_ahead(self._sets.train, numbers, workers=self._workers), step
        if step == self._next:
            images, self._next = next(self._ahead), step + 1
            self._last = step, images
            return images
        return self._sets.train.images(self._numbers(step))

    def _numbers(self, step: int) -> list[int]:
        epoch, position = divmod(step, self.steps_per_epoch)
        numbers: list[int] = self._order(epoch)[position].tolist()
        return numbers

    def _order(self, epoch: int) -> NDArray[np.int64]:
        # Two, since a pass over the first batches in the middle of a training comes back to where it was.
        if epoch not in self._orders:
            while len(self._orders) > 1:
                self._orders.pop(next(iter(self._orders)))
            self._orders[epoch] = self._order_of(epoch)
        return self._orders[epoch]


def _order_of(
    labels: NDArray[np.int64], batch_size: int, classes_per_batch: int | None, seed: int, epoch: int
) -> NDArray[np.int64]:
    """The numbers of the images in each batch of an epoch, as of a resident dataset."""
    if classes_per_batch is None:
        order = shuffled(len(labels), batch_size, seed=seed, epoch=epoch)
    else:
        order = grouped(labels, batch_size, classes_per_batch, seed=seed, epoch=epoch)
    found: NDArray[np.int64] = order.numpy()
    return found


def _numbers_from(step: int, steps_per_epoch: int, order_of: Callable[[int], NDArray[np.int64]]) -> Iterator[list[int]]:
    """The numbers of the images of each step, from one on without end.

    It does not hold the dataset, which holds what reads by it: a ring would leave the readers to the collector.
    """
    epoch, position = divmod(step, steps_per_epoch)
    for later in count(epoch):
        yield from order_of(later)[position:].tolist()
        position = 0


def _kept_moments(sets: ImageSets) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the training set's channels, or of a sample; counted once and kept."""
    file = sets.kept.with_name(f"{sets.kept.name}-moments.npy")
    if not file.is_file():
        counts = _counts(sets.train)
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor, draft = tempfile.mkstemp(prefix=".draft-", dir=file.parent)
        with os.fdopen(descriptor, "wb") as opened:
            np.save(opened, torch.stack(moments(counts)).numpy())
        Path(draft).replace(file)
    mean, std = torch.from_numpy(np.load(file)).unbind()
    return mean, std


def _counts(train: ImageSet) -> Tensor:
    numbers = list(range(len(train.labels)))
    if len(numbers) > SAMPLE:
        numbers = torch.randperm(len(numbers), generator=generator("cpu", 0, "moments"))[:SAMPLE].tolist()
    parts = [numbers[start : start + 64] for start in range(0, len(numbers), 64)]
    return torch.stack([counted(torch.from_numpy(images)) for images in read_ahead(train, parts)]).sum(0)
