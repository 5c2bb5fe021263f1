"""A dataset that lives on the device, and its batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from normcore.build import PARAMETER_DTYPES
from normcore.data.arrays import Arrays, Samples
from normcore.data.batch import Batch
from normcore.data.folders import DataFolders
from normcore.data.image_set import ImageSets
from normcore.data.images import Arrangement, Augmentation, Normalization, arranged
from normcore.data.order import check_batch_size, grouped, shuffled
from normcore.data.split import hold_out, hold_out_images, mislabel
from normcore.data.streamed import Streamed
from normcore.menu.datasets import DataSpec
from normcore.menu.labelled import SizedSpec
from normcore.menu.own_datasets import OwnImagesSpec
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
) -> Resident | Streamed:
    """The dataset of a job: resident on the device, or read as it is needed where it is streamed.

    Args:
        spec: The job; its data, batch size, seed and precision count.
        device: Where the samples are to live.
        folders: Where datasets lie; `data` and `var/cache` below the working directory when not given.
        dtype: Of the batches' inputs and targets; that of the spec's precision when not given.

    Raises:
        DatasetNotFound: The dataset cannot be had.
        Refusal: The batch is larger than the training set.
    """
    data = _part(spec.data)
    if isinstance(spec.data, OwnImagesSpec) and spec.data.streamed:
        return Streamed(
            _divided_images(spec.data, data.sets(folders or DataFolders())),
            classes_per_batch=spec.data.classes_per_batch,
            batch_size=spec.batch_size,
            seed=spec.seed,
            crop_padding=data.crop_padding,
            flip=data.flip,
            device=device,
            dtype=dtype or PARAMETER_DTYPES[spec.precision],
        )
    arrays, held, classes_per_batch = data.arrays(folders or DataFolders()), None, None
    if isinstance(spec.data, SizedSpec | OwnImagesSpec):
        arrays, held = _divided(spec.data, arrays)
        classes_per_batch = spec.data.classes_per_batch
    return Resident(
        arrays,
        validation=held,
        classes_per_batch=classes_per_batch,
        batch_size=spec.batch_size,
        seed=spec.seed,
        crop_padding=getattr(data, "crop_padding", 0),
        flip=getattr(data, "flip", False),
        arrange=_arrangement(spec.data),
        device=device,
        dtype=dtype or PARAMETER_DTYPES[spec.precision],
    )


def _part(spec: DataSpec) -> Any:
    return spec.part()(**spec.knobs())


def _divided(spec: SizedSpec | OwnImagesSpec, arrays: Arrays) -> tuple[Arrays, Samples | None]:
    """Hold out the validation set, and only then make labels wrong."""
    held = None
    if spec.num_validation:
        arrays, held = hold_out(arrays, spec.num_validation, seed=spec.split_seed)
    if spec.label_noise:
        labels = mislabel(arrays.train_labels, spec.label_noise, spec.num_outputs, seed=spec.split_seed)
        arrays = replace(arrays, train_labels=labels)
    return arrays, held


def _divided_images(spec: OwnImagesSpec, sets: ImageSets) -> ImageSets:
    """The same of images that are not decoded yet."""
    if spec.num_validation:
        sets = hold_out_images(sets, spec.num_validation, seed=spec.split_seed)
    if spec.label_noise:
        labels = mislabel(sets.train.labels, spec.label_noise, spec.num_outputs, seed=spec.split_seed)
        sets = replace(sets, train=replace(sets.train, labels=labels))
    return sets


def _arrangement(spec: DataSpec) -> Arrangement:
    return getattr(spec, "arrange", "images") if spec.form == "sequences" else "images"


class Resident:
    """A dataset on the device, and its batches.

    An epoch is one pass in whole batches, shuffled or a few classes a batch, see `normcore.data.order`. Order and
    augmentation are drawn on the CPU from streams of their own, so a batch is a function of seed and step alone, on
    every device. Images stay bytes there; their channels are normalized by the mean and the standard deviation of the
    training set, and a batch costs one gather and one multiply-add. A batch of tokens or vectors costs one gather.

    Args:
        arrays: Inputs and labels. Inputs in uint8 are images, in int64 tokens, in float64 vectors.
        batch_size: Samples in a batch.
        seed: The job's seed.
        crop_padding: Pad training images by this many black pixels and cut out a random window of their size.
        flip: Mirror each training image left to right with probability one half.
        arrange: Whether images stay images or become sequences of rows or pixels, after augmentation.
        validation: Samples held out of the training set, if any.
        classes_per_batch: Fill each batch with this many classes, see `normcore.data.order.grouped`.
        device: Where the samples live.
        dtype: Of the batches' inputs, unless they are tokens, and of targets.

    Raises:
        Refusal: The batch is larger than the training set.

    Attributes:
        train_inputs: uint8 `(num_train, C, H, W)`, int64 `(num_train, L)` or, in `dtype`, `(num_train, D)`.
        train_labels: int64 `(num_train,)` or, in `dtype`, `(num_train, K)`.
        test_inputs: Like those of the training set.
        test_labels: Like those of the training set.
        num_validation: Samples held out of the training set; `num_train` and `num_test` likewise.
        normalization: Of images; none where there are none.
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
        arrange: Arrangement = "images",
        validation: Samples | None = None,
        classes_per_batch: int | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.num_train, self.num_test = len(arrays.train_labels), len(arrays.test_labels)
        check_batch_size(batch_size, self.num_train)
        self.batch_size, self.seed = batch_size, seed
        self.steps_per_epoch = self.num_train // batch_size
        self.train_inputs, self.train_labels, self.test_inputs, self.test_labels = (
            _on(device, dtype, array)
            for array in (arrays.train_inputs, arrays.train_labels, arrays.test_inputs, arrays.test_labels)
        )
        self._validation: tuple[Tensor, Tensor] | None = None
        if validation is not None:
            self._validation = _on(device, dtype, validation.inputs), _on(device, dtype, validation.labels)
        self.num_validation = 0 if validation is None else len(validation)
        self._classes, self._classes_per_batch = arrays.train_labels, classes_per_batch
        images, self._tokens = self.train_inputs.dtype == torch.uint8, self.train_inputs.dtype == torch.int64
        self.normalization = Normalization(self.train_inputs, dtype) if images else None
        self._arranged = arranged(arrange)
        self._augmentation = (
            Augmentation(self.train_inputs, seed=seed, crop_padding=crop_padding, flip=flip)
            if crop_padding or flip
            else None
        )
        self._epoch: int | None = None

    def batch(self, step: int) -> Batch:
        """The training batch of a step.

        Args:
            step: Optimizer updates done so far; the first batch is that of step 0.
        """
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._shuffle(epoch)
        index = self._indices[position]
        if self._augmentation is None:
            inputs = self.train_inputs.index_select(0, index)
        else:
            inputs = self._augmentation.take(index, position)
        return self._batch(inputs, self._labels[position])

    def test_batches(self, size: int = 1000) -> Iterator[Batch]:
        """The test set in order, in batches of at most `size`, normalized like the training set and not augmented."""
        return self._in_order(self.test_inputs, self.test_labels, size)

    def validation_batches(self, size: int = 1000) -> Iterator[Batch]:
        """What was held out of the training set, likewise; nothing where nothing was."""
        return iter(()) if self._validation is None else self._in_order(*self._validation, size)

    def _in_order(self, all_inputs: Tensor, all_labels: Tensor, size: int) -> Iterator[Batch]:
        for inputs, labels in zip(torch.split(all_inputs, size), torch.split(all_labels, size), strict=True):
            yield self._batch(inputs, labels)

    def _batch(self, inputs: Tensor, labels: Tensor) -> Batch:
        if self.normalization is not None:
            inputs = self.normalization(inputs)
        if self._arranged is not None:
            inputs = self._arranged(inputs)
        return Batch(inputs, labels, mask=inputs != 0 if self._tokens else None)

    def _shuffle(self, epoch: int) -> None:
        """Draw order and augmentation of an epoch, and cut both into batches: a step then only picks its views."""
        stream = {"seed": self.seed, "epoch": epoch}
        if self._classes_per_batch is None:
            order = shuffled(self.num_train, self.batch_size, **stream)
        else:
            order = grouped(self._classes, self.batch_size, self._classes_per_batch, **stream)
        order = order.to(self.train_inputs.device)
        self._indices, self._labels = order.unbind(), self.train_labels[order].unbind()
        if self._augmentation is not None:
            self._augmentation.draw(epoch, (self.steps_per_epoch, self.batch_size))
        self._epoch = epoch


def _on(device: torch.device | str, dtype: torch.dtype, array: Any) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)
