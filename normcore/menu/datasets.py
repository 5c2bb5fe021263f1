"""Datasets on the menu."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from normcore.menu.hub_datasets import Cifar100Spec, FashionMnistSpec, MnistSpec
from normcore.menu.labelled import SizedSpec
from normcore.menu.made_datasets import GaussianSpec, PatchesSpec
from normcore.menu.own_datasets import ImageFolderSpec, ParquetSpec
from normcore.menu.spec import Form


class DigitsSpec(SizedSpec):
    """Scikit-learn's handwritten digits: 1,797 real 8x8 grey images, ten classes; ships with the install.

    The last 360 images, by other writers than the first 1,437, are the test set.
    """

    kind: Literal["digits"] = "digits"
    size: Literal[8, 16, 32] = 32
    """Height and width in pixels: 8 is native; 16 and 32 are upsampled bilinearly, 32 is what a VGG needs."""
    crop_padding: Annotated[int, Field(ge=0, le=8)] = 0
    """Random crops after padding by this many pixels; 0 is no augmentation."""
    arrange: Literal["images", "rows", "pixels", "tokens"] = "images"
    """images; sequences of rows or pixels, from the top; or padded tokens, one for each inked pixel of the 8x8."""
    target: ClassVar[str] = "normcore.data.digits:Digits"
    num_outputs: ClassVar[int] = 10
    num_samples: ClassVar[int] = 1437
    num_test: ClassVar[int] = 360
    vocabulary: ClassVar[int] = 257
    """Of tokens: four shades at each of 64 places, and padding."""

    @model_validator(mode="after")
    def _tokens_have_no_pixels(self) -> Self:
        if self.arrange == "tokens" and (self.crop_padding or ("size" in self.model_fields_set and self.size != 8)):
            raise ValueError(
                f"tokens are those of the native 8x8 images as they are, got size {self.size} and crop_padding "
                f"{self.crop_padding}; leave both out, or take another arrange"
            )
        if self.arrange == "tokens":
            # Said as it is, since an order is written down in full and read again.
            object.__setattr__(self, "size", 8)
        return self

    @property
    def form(self) -> Form:
        """What a sample is."""
        forms: dict[str, Form] = {"images": "images", "tokens": "tokens"}
        return forms.get(self.arrange, "sequences")

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample: channels, height, width; length and numbers at each place; or length."""
        size = self.size
        return {"images": (1, size, size), "rows": (size, size), "pixels": (size * size, 1), "tokens": (64,)}[
            self.arrange
        ]


class Cifar10Spec(SizedSpec):
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
    num_outputs: ClassVar[int] = 10
    num_samples: ClassVar[int] = 50_000
    num_test: ClassVar[int] = 10_000
    shape: ClassVar[tuple[int, int, int]] = (3, 32, 32)


DataSpec = (
    DigitsSpec
    | Cifar10Spec
    | GaussianSpec
    | PatchesSpec
    | Cifar100Spec
    | MnistSpec
    | FashionMnistSpec
    | ImageFolderSpec
    | ParquetSpec
)
