"""A dataset that lives on the device, and its batches."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from normcore.build import PARAMETER_DTYPES
from normcore.data.arrays import Arrays
from normcore.data.batch import Batch
from normcore.data.folders import DataFolders
from normcore.menu.datasets import DataSpec
from normcore.refusal import Refusal
from normcore.seeds import generator
from normcore.spec import JobSpec


def find(spec: DataSpec, folders: DataFolders | None = None) -> None:
    """Raise `DatasetNotFound` where a dataset cannot be had; reads no data and takes under three seconds."""
    _part(spec).find(folders or DataFolders())


def load(
    spec: JobSpec,
    *,
    device: torch.device | str = "cpu",
    folders: DataFolders | None = None,
    dtype: torch.dtype | None = None,
) -> Resident:
    """The dataset of a job, resident on the device.

    Args:
        spec: The job; its data, batch size, seed and precision count.
        device: Where the images are to live.
        folders: Where datasets lie; `data` and `var/cache` below the working directory when not given.
        dtype: Of the batches' images; that of the spec's precision when not given.

    Raises:
        DatasetNotFound: The dataset cannot be had.
        Refusal: The batch is larger than the training set.
    """
    data = _part(spec.data)
    return Resident(
        data.arrays(folders or DataFolders()),
        batch_size=spec.batch_size,
        seed=spec.seed,
        crop_padding=data.crop_padding,
        flip=data.flip,
        device=device,
        dtype=dtype or PARAMETER_DTYPES[spec.precision],
    )


def _part(spec: DataSpec) -> Any:
    return spec.part()(**spec.knobs())


class Resident:
    """A dataset as bytes on the device, and its normalized batches.

    An epoch is one shuffled pass in whole batches; what does not fill a batch is left out, other images each epoch.
    Order and augmentation are those of the streams `(seed, "order", epoch)` and `(seed, "augmentation", epoch)`, drawn
    on the CPU, so a batch is a function of seed and step alone, on every device. Channels are normalized by the mean
    and the standard deviation of the training set. Without augmentation a batch costs one gather and one multiply-add.

    Args:
        arrays: Images and labels.
        batch_size: Images in a batch.
        seed: The job's seed.
        crop_padding: Pad training images by this many black pixels and cut out a random window of their size.
        flip: Mirror each training image left to right with probability one half.
        device: Where the images live.
        dtype: Of the batches' images.

    Raises:
        Refusal: The batch is larger than the training set.

    Attributes:
        train_images: uint8, `(num_train, C, H, W)`.
        train_labels: int64, `(num_train,)`.
        test_images: uint8, `(num_test, C, H, W)`.
        test_labels: int64, `(num_test,)`.
        mean: float64 on the CPU, `(C,)`: of the training pixels, where white is 1.
        std: float64 on the CPU, `(C,)`: of the same.
        steps_per_epoch: Whole batches in the training set.

    Example:
        >>> import numpy as np
        >>> images, labels = np.arange(48, dtype=np.uint8).reshape(6, 2, 2, 2), np.arange(6)
        >>> data = Resident(Arrays(images, labels, images, labels), batch_size=3, seed=0)
        >>> x = data.batch(0).inputs
        >>> x.shape, x.dtype, data.steps_per_epoch
        (torch.Size([3, 2, 2, 2]), torch.float32, 2)
    """

    def __init__(
        self,
        arrays: Arrays,
        *,
        batch_size: int,
        seed: int,
        crop_padding: int = 0,
        flip: bool = False,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.num_train, self.num_test = len(arrays.train_labels), len(arrays.test_labels)
        check_batch_size(batch_size, self.num_train)
        self.batch_size, self.seed, self.crop_padding, self.flip = batch_size, seed, crop_padding, flip
        self.steps_per_epoch = self.num_train // batch_size
        self.train_images = torch.from_numpy(arrays.train_images).to(device)
        self.train_labels = torch.from_numpy(arrays.train_labels).to(device)
        self.test_images = torch.from_numpy(arrays.test_images).to(device)
        self.test_labels = torch.from_numpy(arrays.test_labels).to(device)
        self.mean, self.std = mean_and_std(self.train_images)
        self._factor = (1 / (255 * self.std)).view(1, -1, 1, 1).to(device, dtype)
        self._offset = (-self.mean / self.std).view(1, -1, 1, 1).to(device, dtype)
        self._dtype = dtype
        if crop_padding:
            height, width = self.train_images.shape[2:]
            padded = torch.nn.functional.pad(self.train_images, (crop_padding,) * 4)
            self._windows = padded.unfold(2, height, 1).unfold(3, width, 1)
        self._epoch: int | None = None

    def batch(self, step: int) -> Batch:
        """The training batch of a step: images `(batch_size, C, H, W)` in `dtype`, labels `(batch_size,)` in int64.

        Args:
            step: Optimizer updates done so far; the first batch is that of step 0.
        """
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._shuffle(epoch)
        index = self._indices[position]
        if self.crop_padding:
            images = self._windows[index, :, self._tops[position], self._lefts[position]]
        else:
            images = self.train_images.index_select(0, index)
        if self.flip:
            images = torch.where(self._mirrored[position], images.flip(3), images)
        return Batch(self.normalize(images), self._labels[position])

    def test_batches(self, size: int = 1000) -> Iterator[Batch]:
        """The test set in order, in batches of at most `size`, normalized like the training set and not augmented."""
        for images, labels in zip(
            torch.split(self.test_images, size), torch.split(self.test_labels, size), strict=True
        ):
            yield Batch(self.normalize(images), labels)

    def normalize(self, images: Tensor) -> Tensor:
        """Bytes `(N, C, H, W)` to numbers whose channels have mean 0 and standard deviation 1 over the training set."""
        return images.to(self._dtype).mul_(self._factor).add_(self._offset)

    def _shuffle(self, epoch: int) -> None:
        """Draw order and augmentation of an epoch, and cut both into batches: a step then only picks its views."""
        device, shape = self.train_images.device, (self.steps_per_epoch, self.batch_size)
        order = torch.randperm(self.num_train, generator=generator("cpu", self.seed, "order", epoch))
        order = order[: math.prod(shape)].to(device)
        self._indices = order.view(shape).unbind()
        self._labels = self.train_labels[order].view(shape).unbind()
        draws = generator("cpu", self.seed, "augmentation", epoch)
        if self.crop_padding:
            corners = torch.randint(2 * self.crop_padding + 1, (2, *shape), generator=draws).to(device)
            self._tops, self._lefts = corners[0].unbind(), corners[1].unbind()
        if self.flip:
            mirrored = torch.randint(2, (*shape, 1, 1, 1), generator=draws).bool().to(device)
            self._mirrored = mirrored.unbind()
        self._epoch = epoch


def check_batch_size(batch_size: int, num_train: int) -> None:
    """Raise `Refusal` where a batch is larger than the training set."""
    if batch_size > num_train:
        raise Refusal(
            "batch-larger-than-data",
            f"a batch must fit into the training set, got batch_size {batch_size} and {num_train} training images; "
            f"set batch_size to at most {num_train}",
        )


def mean_and_std(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased standard deviation of each channel of uint8 images `(N, C, H, W)`, where white is 1.

    Counted exactly, value by value, and divided in float64; returned on the CPU, `(C,)` each.

    Example:
        >>> mean_and_std(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1))
        (tensor([0.5000], dtype=torch.float64), tensor([0.5000], dtype=torch.float64))
    """
    counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)]).cpu()
    shares = counts.double() / counts.sum(1, keepdim=True)
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = shares @ values
    variance = (shares * (values - mean[:, None]) ** 2).sum(1)
    return mean, variance.sqrt()
