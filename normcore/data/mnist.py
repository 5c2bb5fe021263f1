"""MNIST, in the layout of the Hugging Face dataset `ylecun/mnist`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from normcore.data.arrays import Arrays
from normcore.data.folders import DataFolders
from normcore.data.hugging_face import HuggingFaceImages
from normcore.menu.hub_datasets import MnistSpec as Spec

NATIVE = 28
"""Height and width of the images as published."""


class Mnist:
    """70,000 grey images of handwritten digits, 28x28 pixels (LeCun et al. 1998), 10,000 of them the test set.

    Args:
        size: 28, or 32 with two black pixels more on every side.
        crop_padding: Pixels around an image for random crops.
    """

    flip = False

    def __init__(self, *, size: int = NATIVE, crop_padding: int = 0) -> None:
        self.size, self.crop_padding = size, crop_padding
        shape = (1, NATIVE, NATIVE)
        self._images = HuggingFaceImages(
            "mnist", "MNIST", "ylecun/mnist", "image", ("label",), shape, Spec.num_samples, Spec.num_test
        )

    def find(self, folders: DataFolders) -> None:
        """Raise `DatasetNotFound` where the images cannot be had; reads none."""
        self._images.find(folders)

    def arrays(self, folders: DataFolders) -> Arrays:
        """All images in the wanted size, and their labels; raises like `HuggingFaceImages.arrays`."""
        native = self._images.arrays(folders)
        return replace(
            native,
            train_inputs=framed(native.train_inputs, self.size),
            test_inputs=framed(native.test_inputs, self.size),
        )


def framed(images: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Square images `(N, C, H, H)` in the middle of black ones of `size` x `size`.

    Example:
        >>> framed(np.full((1, 1, 1, 1), 255, np.uint8), 3)[0, 0].tolist()
        [[0, 0, 0], [0, 255, 0], [0, 0, 0]]
    """
    width = (size - images.shape[-1]) // 2
    return np.pad(images, ((0, 0), (0, 0), (width, width), (width, width)))
