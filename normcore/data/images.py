"""Images as bytes on the device: normalized, augmented and arranged there, a batch at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from normcore.seeds import generator

Arrangement = Literal["images", "rows", "pixels"]


def mean_and_std(images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased standard deviation of each channel of uint8 images `(N, C, H, W)`, where white is 1.

    Counted exactly, value by value, and divided in float64; returned on the CPU, `(C,)` each.

    Example:
        >>> mean_and_std(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1))
        (tensor([0.5000], dtype=torch.float64), tensor([0.5000], dtype=torch.float64))
    """
    return moments(counted(images))


def counted(images: Tensor) -> Tensor:
    """How many pixels of uint8 images `(N, C, H, W)` have each of the 256 values, `(C, 256)` on the CPU."""
    return torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)]).cpu()


def moments(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased standard deviation of each channel, `(C,)`, of counted pixels `(C, 256)`, where white is 1."""
    shares = counts.double() / counts.sum(1, keepdim=True)
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = shares @ values
    variance = (shares * (values - mean[:, None]) ** 2).sum(1)
    return mean, variance.sqrt()


class Normalization:
    """From bytes to numbers whose channels have mean 0 and standard deviation 1 over the training set.

    Args:
        images: The training set, uint8 `(N, C, H, W)`.
        dtype: Of the numbers.

    Attributes:
        mean: float64 on the CPU, `(C,)`: of the training pixels, where white is 1.
        std: float64 on the CPU, `(C,)`: of the same.

    Example:
        >>> images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1)
        >>> Normalization(images, torch.float32)(images).flatten()
        tensor([-1.,  1.])
    """

    def __init__(self, images: Tensor, dtype: torch.dtype) -> None:
        self.become(*mean_and_std(images), images.device, dtype)

    @classmethod
    def of_moments(cls, mean: Tensor, std: Tensor, device: torch.device | str, dtype: torch.dtype) -> Normalization:
        """The normalization of images that are not there, by their mean and standard deviation."""
        made = cls.__new__(cls)
        made.become(mean, std, torch.device(device), dtype)
        return made

    def become(self, mean: Tensor, std: Tensor, device: torch.device, dtype: torch.dtype) -> None:
        """Normalize from now on by this mean and this standard deviation."""
        self.mean, self.std, self._dtype = mean, std, dtype
        self._factor = (1 / (255 * std)).view(1, -1, 1, 1).to(device, dtype)
        self._offset = (-mean / std).view(1, -1, 1, 1).to(device, dtype)

    def __call__(self, images: Tensor) -> Tensor:
        """Normalize bytes `(N, C, H, W)`."""
        return images.to(self._dtype).mul_(self._factor).add_(self._offset)


class Augmentation:
    """Random crops and flips of the training images, drawn for an epoch at once.

    The draws are those of the stream `(seed, "augmentation", epoch)`, made on the CPU.

    Args:
        images: The training set, uint8 `(N, C, H, W)`.
        seed: The job's.
        crop_padding: Pad by this many black pixels and cut out a random window of the images' size.
        flip: Mirror each image left to right with probability one half.
    """

    def __init__(self, images: Tensor, *, seed: int, crop_padding: int, flip: bool) -> None:
        self._images, self._seed, self._crop_padding, self._flip = images, seed, crop_padding, flip
        if crop_padding:
            height, width = images.shape[2:]
            padded = torch.nn.functional.pad(images, (crop_padding,) * 4)
            self._windows = padded.unfold(2, height, 1).unfold(3, width, 1)

    def draw(self, epoch: int, shape: tuple[int, int]) -> None:
        """Draw for an epoch of `shape` batches and samples in each."""
        draws, device = generator("cpu", self._seed, "augmentation", epoch), self._images.device
        if self._crop_padding:
            corners = torch.randint(2 * self._crop_padding + 1, (2, *shape), generator=draws).to(device)
            self._tops, self._lefts = corners[0].unbind(), corners[1].unbind()
        if self._flip:
            self._mirrored = torch.randint(2, (*shape, 1, 1, 1), generator=draws).bool().to(device).unbind()

    def take(self, index: Tensor, position: int) -> Tensor:
        """The images of numbers `index`, in the crops and flips of the batch at a position of the epoch."""
        if self._crop_padding:
            images = self._windows[index, :, self._tops[position], self._lefts[position]]
        else:
            images = self._images.index_select(0, index)
        return torch.where(self._mirrored[position], images.flip(3), images) if self._flip else images

    def of(self, images: Tensor, position: int) -> Tensor:
        """The same of images that are given: those of the batch at a position of the epoch, in its order."""
        height, width = images.shape[2:]
        if self._crop_padding:
            padded = torch.nn.functional.pad(images, (self._crop_padding,) * 4)
            windows = padded.unfold(2, height, 1).unfold(3, width, 1)
            places = torch.arange(len(images), device=images.device)
            images = windows[places, :, self._tops[position], self._lefts[position]]
        return torch.where(self._mirrored[position], images.flip(3), images) if self._flip else images


def rows(images: Tensor) -> Tensor:
    """Images `(N, C, H, W)` as sequences of their rows, from the top: `(N, H, C * W)`.

    Example:
        >>> rows(torch.arange(4).view(1, 1, 2, 2)).tolist()
        [[[0, 1], [2, 3]]]
    """
    return images.transpose(1, 2).flatten(2)


def pixels(images: Tensor) -> Tensor:
    """Images `(N, C, H, W)` as sequences of their pixels in reading order: `(N, H * W, C)`.

    Example:
        >>> pixels(torch.arange(4).view(1, 1, 2, 2)).tolist()
        [[[0], [1], [2], [3]]]
    """
    return images.flatten(2).transpose(1, 2).contiguous()


def arranged(arrangement: Arrangement) -> Callable[[Tensor], Tensor] | None:
    """What makes sequences of images; none where they stay images."""
    return {"images": None, "rows": rows, "pixels": pixels}[arrangement]
