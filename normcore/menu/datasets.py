"""Datasets on the menu."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from normcore.menu.spec import Form, Spec, Task


class DigitsSpec(Spec):
    """Scikit-learn's handwritten digits: 1,797 real 8x8 grey images, ten classes; ships with the install.

    The last 360 images, by other writers than the first 1,437, are the test set.
    """

    kind: Literal["digits"] = "digits"
    size: Literal[8, 16, 32] = 32
    """Height and width in pixels: 8 is native; 16 and 32 are upsampled bilinearly, 32 is what a VGG needs."""
    crop_padding: Annotated[int, Field(ge=0, le=8)] = 0
    """Random crops after padding by this many pixels; 0 is no augmentation."""
    target: ClassVar[str] = "normcore.data.digits:Digits"
    form: ClassVar[Form] = "images"
    task: ClassVar[Task] = "classification"
    num_outputs: ClassVar[int] = 10
    num_train: ClassVar[int] = 1437
    num_test: ClassVar[int] = 360

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width of one image."""
        return (1, self.size, self.size)


class Cifar10Spec(Spec):
    """CIFAR-10 (Krizhevsky 2009): 60,000 colour images of 32x32, ten classes; `uoft-cs/cifar10` in parquet.

    Read from the data folder, or from the Hugging Face hub when it can be reached.
    """

    kind: Literal["cifar10"] = "cifar10"
    crop_padding: Annotated[int, Field(ge=0, le=8)] = 0
    """Random crops after padding by this many pixels; 0 is none, 4 is usual."""
    flip: bool = False
    """Mirror each training image left to right with probability one half."""
    target: ClassVar[str] = "normcore.data.cifar10:Cifar10"
    form: ClassVar[Form] = "images"
    task: ClassVar[Task] = "classification"
    num_outputs: ClassVar[int] = 10
    num_train: ClassVar[int] = 50_000
    num_test: ClassVar[int] = 10_000
    shape: ClassVar[tuple[int, int, int]] = (3, 32, 32)


DataSpec = DigitsSpec | Cifar10Spec
