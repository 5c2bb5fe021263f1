"""Fashion-MNIST, in the layout of the Hugging Face dataset `zalando-datasets/fashion_mnist`."""

from __future__ import annotations

from dataclasses import replace

from normcore.data.arrays import Arrays
from normcore.data.folders import DataFolders
from normcore.data.hugging_face import HuggingFaceImages
from normcore.data.mnist import NATIVE, framed
from normcore.menu.hub_datasets import FashionMnistSpec as Spec


class FashionMnist:
    """70,000 grey images of clothes, 28x28 pixels in ten classes (Xiao et al. 2017), 10,000 of them the test set.

    In the form of MNIST, and harder.

    Args:
        size: 28, or 32 with two black pixels more on every side.
        crop_padding: Pixels around an image for random crops.
        flip: Mirror each training image left to right with probability one half.
    """

    def __init__(self, *, size: int = NATIVE, crop_padding: int = 0, flip: bool = False) -> None:
        self.size, self.crop_padding, self.flip = size, crop_padding, flip
        self._images = HuggingFaceImages(
            "fashion_mnist",
            "Fashion-MNIST",
            "zalando-datasets/fashion_mnist",
            "image",
            ("label",),
            (1, NATIVE, NATIVE),
            Spec.num_samples,
            Spec.num_test,
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
