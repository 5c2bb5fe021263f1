"""CIFAR-10, in the layout of the Hugging Face dataset `uoft-cs/cifar10`."""

from __future__ import annotations

from normcore.data.arrays import Arrays
from normcore.data.folders import DataFolders
from normcore.data.hugging_face import HuggingFaceImages
from normcore.menu.datasets import Cifar10Spec as Spec


class Cifar10:
    """60,000 colour images of 32x32 pixels in ten classes (Krizhevsky 2009), 10,000 of them the test set.

    Decoding takes some ten seconds, is done once, and is kept in the cache folder as 184 MB of arrays.

    Args:
        crop_padding: Pixels around an image for random crops.
        flip: Mirror each training image left to right with probability one half.
    """

    def __init__(self, *, crop_padding: int = 0, flip: bool = False) -> None:
        self.crop_padding, self.flip = crop_padding, flip
        self._images = HuggingFaceImages(
            "cifar10", "CIFAR-10", "uoft-cs/cifar10", "img", ("label",), Spec.shape, Spec.num_samples, Spec.num_test
        )

    def find(self, folders: DataFolders) -> None:
        """Raise `DatasetNotFound` where the images cannot be had; reads none."""
        self._images.find(folders)

    def arrays(self, folders: DataFolders) -> Arrays:
        """All images and labels; raises like `HuggingFaceImages.arrays`."""
        return self._images.arrays(folders)
