"""Datasets of the Hugging Face hub on the menu, besides CIFAR-10."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from normcore.menu.labelled import SizedSpec
from normcore.menu.spec import Form


class Cifar100Spec(SizedSpec):
    """CIFAR-100 (Krizhevsky 2009): 60,000 colour images of 32x32, 100 classes; `uoft-cs/cifar100` in parquet.

    Read from the data folder, or from the Hugging Face hub when it can be reached.
    """

    kind: Literal["cifar100"] = "cifar100"
    labels: Literal["fine", "coarse"] = "fine"
    """fine: 100 classes; coarse: the 20 superclasses that they fall into by fives."""
    crop_padding: Annotated[int, Field(ge=0, le=8)] = 0
    """Random crops after padding by this many pixels; 0 is none, 4 is usual."""
    flip: bool = False
    """Mirror each training image left to right with probability one half."""
    target: ClassVar[str] = "normcore.data.cifar100:Cifar100"
    form: ClassVar[Form] = "images"
    num_samples: ClassVar[int] = 50_000
    num_test: ClassVar[int] = 10_000
    shape: ClassVar[tuple[int, int, int]] = (3, 32, 32)

    @property
    def num_outputs(self) -> int:
        """Classes."""
        return 100 if self.labels == "fine" else 20


class MnistSpec(SizedSpec):
    """MNIST (LeCun et al. 1998): 70,000 grey handwritten digits of 28x28, ten classes; `ylecun/mnist` in parquet.

    Read from the data folder, or from the Hugging Face hub when it can be reached.
    """

    kind: Literal["mnist"] = "mnist"
    size: Literal[28, 32] = 28
    """Height and width in pixels: 28 is native; 32 has a black frame of two pixels, and is what a VGG needs."""
    crop_padding: Annotated[int, Field(ge=0, le=8)] = 0
    """Random crops after padding by this many pixels; 0 is none."""
    target: ClassVar[str] = "normcore.data.mnist:Mnist"
    form: ClassVar[Form] = "images"
    num_outputs: ClassVar[int] = 10
    num_samples: ClassVar[int] = 60_000
    num_test: ClassVar[int] = 10_000

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width of one image."""
        return (1, self.size, self.size)


class FashionMnistSpec(SizedSpec):
    """Fashion-MNIST (Xiao et al. 2017): 70,000 grey images of clothes, 28x28, ten classes; in parquet.

    `zalando-datasets/fashion_mnist`, read from the data folder, or from the Hugging Face hub when it can be reached.
    """

    kind: Literal["fashion_mnist"] = "fashion_mnist"
    size: Literal[28, 32] = 28
    """Height and width in pixels: 28 is native; 32 has a black frame of two pixels, and is what a VGG needs."""
    crop_padding: Annotated[int, Field(ge=0, le=8)] = 0
    """Random crops after padding by this many pixels; 0 is none."""
    flip: bool = False
    """Mirror each training image left to right with probability one half."""
    target: ClassVar[str] = "normcore.data.fashion_mnist:FashionMnist"
    form: ClassVar[Form] = "images"
    num_outputs: ClassVar[int] = 10
    num_samples: ClassVar[int] = 60_000
    num_test: ClassVar[int] = 10_000

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width of one image."""
        return (1, self.size, self.size)
