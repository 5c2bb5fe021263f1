"""CIFAR-100, in the layout of the Hugging Face dataset `uoft-cs/cifar100`."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from normcore.data.arrays import Arrays
from normcore.data.folders import DataFolders
from normcore.data.hugging_face import HuggingFaceImages
from normcore.menu.hub_datasets import Cifar100Spec as Spec

COLUMNS = ("fine_label", "coarse_label")


class Cifar100:
    """60,000 colour images of 32x32 pixels (Krizhevsky 2009), 10,000 of them the test set.

    Each has two labels: one of 100 classes, and one of the 20 superclasses that these fall into by fives. Both are kept
    with the decoded images, so the images lie in the cache once.

    Args:
        labels: The 100 classes, or the 20.
        crop_padding: Pixels around an image for random crops.
        flip: Mirror each training image left to right with probability one half.
    """

    def __init__(
        self, *, labels: Literal["fine", "coarse"] = "fine", crop_padding: int = 0, flip: bool = False
    ) -> None:
        self.crop_padding, self.flip = crop_padding, flip
        self._column = COLUMNS.index(f"{labels}_label")
        self._images = HuggingFaceImages(
            "cifar100", "CIFAR-100", "uoft-cs/cifar100", "img", COLUMNS, Spec.shape, Spec.num_samples, Spec.num_test
        )

    def find(self, folders: DataFolders) -> None:
        """Raise `DatasetNotFound` where the images cannot be had; reads none."""
        self._images.find(folders)

    def arrays(self, folders: DataFolders) -> Arrays:
        """All images, and their labels of the wanted kind; raises like `HuggingFaceImages.arrays`."""
        both = self._images.arrays(folders)
        train, test = (labels[:, self._column].copy() for labels in (both.train_labels, both.test_labels))
        return replace(both, train_labels=train, test_labels=test)
