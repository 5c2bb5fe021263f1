"""Datasets on the menu that are made from a seed, in memory."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from normcore.menu.labelled import SizedSpec
from normcore.menu.spec import Form, Spec, Task

MAX_NUMBERS = 10_000_000
"""Numbers in the inputs of a regression's training set."""

MAX_PIXELS = 1_000_000_000
"""In images that are made: a gigabyte in each channel."""

DataSeed = Annotated[int, Field(ge=0, le=2**63 - 1)]


class GaussianSpec(Spec):
    """Regression on targets y = A x, with x and A standard normal (Santurkar et al. 2018, appendix A); made in memory.

    The loss is the squared error summed over a batch: the paper's full batch is a batch_size of num_samples.
    """

    kind: Literal["gaussian"] = "gaussian"
    size: Annotated[int, Field(ge=1, le=1000)] = 10
    """Numbers in a vector, and in its target."""
    num_samples: Annotated[int, Field(ge=1, le=1_000_000)] = 1000
    """Training samples, and as many in the test set."""
    data_seed: DataSeed = 0
    """Of the task, apart from the job's seed."""
    target: ClassVar[str] = "normcore.data.gaussian:Gaussian"
    form: ClassVar[Form] = "vectors"
    task: ClassVar[Task] = "regression"

    @model_validator(mode="after")
    def _fits_into_memory(self) -> Self:
        if self.size * self.num_samples > MAX_NUMBERS:
            raise ValueError(
                f"size times num_samples may be at most {MAX_NUMBERS:,}, got {self.size:,} and {self.num_samples:,}; "
                f"lower one"
            )
        return self

    @property
    def shape(self) -> tuple[int]:
        """Numbers in a vector."""
        return (self.size,)

    @property
    def num_outputs(self) -> int:
        """Numbers in a target."""
        return self.size

    @property
    def num_train(self) -> int:
        """Training samples."""
        return self.num_samples

    @property
    def num_test(self) -> int:
        """Test samples."""
        return self.num_samples


class PatchesSpec(SizedSpec):
    """Synthetic colour images: classes are arrangements of striped quarters, which no linear model can tell apart.

    Under clutter, noise, and random contrast and brightness; made in memory from a seed, for tests and benchmarks.
    """

    kind: Literal["patches"] = "patches"
    size: Annotated[int, Field(ge=8, le=224)] = 32
    """Height and width in pixels."""
    num_samples: Annotated[int, Field(ge=2, le=1_000_000)] = 10_000
    """Training images."""
    num_test: Annotated[int, Field(ge=1, le=1_000_000)] = 2000
    """Test images."""
    num_classes: Annotated[int, Field(ge=2, le=256)] = 10
    """Arrangements: of one of four orientations in each of four quarters."""
    noise: Annotated[float, Field(ge=0, le=10)] = 1.0
    """Standard deviation of the noise in each pixel; the strongest stripes have an amplitude of 1."""
    data_seed: DataSeed = 0
    """Of the task, apart from the job's seed."""
    target: ClassVar[str] = "normcore.data.patches:Patches"
    form: ClassVar[Form] = "images"

    @model_validator(mode="after")
    def _fits_into_memory(self) -> Self:
        if (pixels := (self.num_samples + self.num_test) * self.size**2) > MAX_PIXELS:
            raise ValueError(
                f"all images together may have at most {MAX_PIXELS:,} pixels, got {pixels:,}; lower num_samples or size"
            )
        return self

    @property
    def num_outputs(self) -> int:
        """Classes."""
        return self.num_classes

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height, width of one image."""
        return (3, self.size, self.size)
