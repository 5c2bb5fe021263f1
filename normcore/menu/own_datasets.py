"""Datasets of one's own on the menu: images in files below the data folder."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from normcore.menu.labelled import LabelledSpec
from normcore.menu.spec import Form, Spec
from normcore.refusal import Refusal

RESIDENT_BYTES = 2 * 2**30
"""Datasets that take no more than this once they are decoded live on the device unless they are asked not to."""

MEASURED = ("num_train", "num_test", "num_classes", "fingerprint", "num_validation")
"""The fields that an order leaves out: they are counted when it is taken, and stand in the job from then on."""


class OwnImagesSpec(LabelledSpec):
    """Images below the data folder, of which the spec does not know how many there are until they are measured.

    `normcore.data.measure.measured` fills in what is not given, and refuses what is given and no longer true.
    """

    path: Annotated[str, Field(min_length=1, max_length=1000)]
    """Below the server's data folder."""
    size: Annotated[int, Field(ge=8, le=512)] = 32
    """Height and width in pixels: images are resized by their shorter side and cut out of the middle."""
    channels: Literal[3, 1] = 3
    """3 for colour, 1 for grey."""
    test_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """What share of the images is held out as the test set, where the files have none."""
    crop_padding: Annotated[int, Field(ge=0, le=64)] = 0
    """Random crops after padding by this many pixels; 0 is none."""
    flip: bool = False
    """Mirror each training image left to right with probability one half."""
    resident: Literal["auto"] | bool = "auto"
    """Whether the decoded images live on the device or are read as they are needed; auto: up to 2 GiB do."""
    num_train: Annotated[int, Field(ge=1)] | None = None
    """Images that are trained on; leave it out, it is counted when the job is taken."""
    num_test: Annotated[int, Field(ge=1)] | None = None
    """Test images; leave it out likewise."""
    num_classes: Annotated[int, Field(ge=2)] | None = None
    """Classes; leave it out likewise."""
    fingerprint: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")] | None = None
    """Of the files' names and sizes; leave it out likewise."""
    num_validation: Annotated[int, Field(ge=0)] | None = None
    """Images held out for validation; leave it out likewise."""
    form: ClassVar[Form] = "images"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width of one image."""
        return (self.channels, self.size, self.size)

    @property
    def num_outputs(self) -> int:
        """Classes.

        Raises:
            Refusal: They were not counted yet.
        """
        if self.num_classes is None:
            raise not_measured(self)
        return self.num_classes

    @property
    def known_classes(self) -> int | None:
        """The number of classes, once they were counted."""
        return self.num_classes

    @property
    def streamed(self) -> bool:
        """Whether the images are read as they are needed, instead of living on the device.

        Raises:
            Refusal: They were not counted yet.
        """
        if self.resident != "auto":
            return not self.resident
        if self.num_train is None or self.num_test is None:
            raise not_measured(self)
        images = self.num_train + (self.num_validation or 0) + self.num_test
        return images * self.channels * self.size**2 > RESIDENT_BYTES

    def knobs(self) -> dict[str, Any]:
        """The fields that the part takes: not what is measured, nor where the images are to live.

        It is told the seed of the split, by which it holds out a test set where the files have none.
        """
        own = {name: value for name, value in super().knobs().items() if name not in (*MEASURED, "resident")}
        return own | {"split_seed": self.split_seed}


def not_measured(spec: Spec) -> Refusal:
    """The refusal to say of images how many they are before they were counted."""
    return Refusal(
        "not-measured",
        f"the images of {getattr(spec, 'path', '')!r} must be counted before a job has a size, got a spec without "
        f"their number; take normcore.data.measure.measured(spec)",
    )


class ImageFolderSpec(OwnImagesSpec):
    """Your own images in folders: `train/<class>/*.png` or `.jpg`, and `test/<class>/...` or a share held out.

    Folders lie below the server's data folder, in `path`. The class of an image is the name of its folder.
    """

    kind: Literal["imagefolder"] = "imagefolder"
    target: ClassVar[str] = "normcore.data.imagefolder:ImageFolder"


class ParquetSpec(OwnImagesSpec):
    """Your own images in parquet files with a column of encoded images and one of labels.

    A file, or a folder of files `train*.parquet` and `test*.parquet` (or below folders of these names); where none is
    named so, a share of all rows is held out as the test set. The classes are the labels that occur, in their order.
    """

    kind: Literal["parquet"] = "parquet"
    image: Annotated[str, Field(min_length=1, max_length=200)] = "image"
    """The column of encoded images (png, jpg): bytes, or records with a field `bytes` as on the Hugging Face hub."""
    label: Annotated[str, Field(min_length=1, max_length=200)] = "label"
    """The column of labels: whole numbers or words."""
    target: ClassVar[str] = "normcore.data.parquet:Parquet"
