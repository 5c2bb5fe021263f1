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
        arrange: With "tokens" the ink of the native image as tokens, see `ink_tokens`; else images, which are
            arranged a batch at a time.
    """

    def __init__(self, *, size: int = 32, crop_padding: int = 0, arrange: str = "images") -> None:
        self.size, self.crop_padding, self.arrange = size, crop_padding, arrange

    def find(self, folders: DataFolders) -> None:
        """Raise `DatasetNotFound` where the digits cannot be had; reads and imports nothing."""
        if not _kept(folders).is_dir() and find_spec("sklearn") is None:
            raise DatasetNotFound(
                "digits come with scikit-learn, which is not installed; install it: pip install 'normcore[data]'"
            )

    def arrays(self, folders: DataFolders) -> Arrays:
        """The images at the wanted size, or the tokens, and their labels; raises `DatasetNotFound` like `find`."""
        self.find(folders)
        native = cached(_kept(folders), _decode)
        train, test = (
            ink_tokens(images) if self.arrange == "tokens" else _upsample(images, self.size)
            for images in (native.train_inputs, native.test_inputs)
        )
        return Arrays(train, native.train_labels, test, native.test_labels)


def ink_tokens(images: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The ink of images `(N, 1, H, W)` in reading order, as sequences `(N, H * W)` padded with 0 at the end.

    A pixel that is not blank is the token `1 + 4 * place + shade`: its place in reading order, and the quarter of the
    scale from black to white that it lies in, 0 to 3. Blank pixels are left out, so sequences differ in length.

    Example:
        >>> ink_tokens(np.array([[[[0, 255], [10, 0]]]], dtype=np.uint8)).tolist()
        [[8, 9, 0, 0]]
    """
    flat = images.reshape(len(images), -1)
    tokens = 1 + 4 * np.arange(flat.shape[1]) + flat // 64
    blank = flat == 0
    # A stable sort by blankness moves the ink to the front and keeps its order.
    order = np.argsort(blank, axis=1, kind="stable")
    return np.take_along_axis(np.where(blank, 0, tokens), order, axis=1).astype(np.int64)


def _kept(folders: DataFolders) -> Path:
    return folders.cache_dir / "digits"


def _decode() -> Arrays:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = digits.target.astype(np.int64)
    cut = DigitsSpec.num_samples
    return Arrays(images[:cut], labels[:cut], images[cut:], labels[cut:])


def _upsample(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    if images.shape[-1] == size:
        return images
    smooth = functional.interpolate(torch.from_numpy(images).float(), size=(size, size), mode="bilinear")
    return smooth.round_().to(torch.uint8).numpy()
