"""Scikit-learn's handwritten digits."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from normcore.data.arrays import Arrays, cached
from normcore.data.folders import DataFolders, DatasetNotFound
from normcore.menu.datasets import DigitsSpec


class Digits:
    """1,797 real handwritten digits of 8x8 pixels in 17 shades of grey (Alpaydin & Kaynak 1998, UCI).

    The last 360, by other writers than the first 1,437, are the test set. Larger sizes are upsampled bilinearly and
    rounded to 256 shades. The decoded images are kept in the cache folder, so that only the first training imports
    scikit-learn (about a second).

    Args:
        size: Height and width in pixels, a multiple of 8.
        crop_padding: Pixels around an image for random crops.
    """

    flip = False

    def __init__(self, *, size: int = 32, crop_padding: int = 0) -> None:
        self.size, self.crop_padding = size, crop_padding

    def find(self, folders: DataFolders) -> None:
        """Raise `DatasetNotFound` where the digits cannot be had; reads and imports nothing."""
        if not _kept(folders).is_dir() and find_spec("sklearn") is None:
            raise DatasetNotFound(
                "digits come with scikit-learn, which is not installed; install it: pip install 'normcore[data]'"
            )

    def arrays(self, folders: DataFolders) -> Arrays:
        """The images at the wanted size, and their labels; raises `DatasetNotFound` like `find`."""
        self.find(folders)
        native = cached(_kept(folders), _decode)
        return Arrays(
            _upsample(native.train_images, self.size),
            native.train_labels,
            _upsample(native.test_images, self.size),
            native.test_labels,
        )


def _kept(folders: DataFolders) -> Path:
    return folders.cache_dir / "digits"


def _decode() -> Arrays:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = digits.target.astype(np.int64)
    cut = DigitsSpec.num_train
    return Arrays(images[:cut], labels[:cut], images[cut:], labels[cut:])


def _upsample(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    if images.shape[-1] == size:
        return images
    smooth = functional.interpolate(torch.from_numpy(images).float(), size=(size, size), mode="bilinear")
    return smooth.round_().to(torch.uint8).numpy()
