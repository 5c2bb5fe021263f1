"""What may be chosen of every dataset with classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from normcore.menu.spec import Misfit, Spec, Task


class LabelledSpec(Spec):
    """A dataset whose labels are classes. The knobs here act on any of them; its part is not told of them.

    A subclass says `num_outputs`, the number of classes.
    """

    validation: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Share of the training set that is held out and evaluated on beside the test set; 0 is none."""
    split_seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    """Of what is held out and which labels are wrong, apart from the job's seed."""
    label_noise: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the training labels that are replaced by another class; those of validation and test stay true."""
    classes_per_batch: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Fill each batch with this many classes, drawn anew each time (as in Ioffe 2017, section 4.3); none: shuffle."""
    task: ClassVar[Task] = "classification"

    if TYPE_CHECKING:

        @property
        def num_outputs(self) -> int:
            """Classes."""

    @property
    def known_classes(self) -> int | None:
        """The number of classes, where the spec knows it."""
        return self.num_outputs

    @model_validator(mode="after")
    def _there_are_so_many_classes(self) -> Self:
        known = self.known_classes
        if self.classes_per_batch is not None and known is not None and self.classes_per_batch > known:
            raise Misfit(
                f"classes_per_batch may be at most the number of classes, got {self.classes_per_batch} of {known}; "
                f"lower it",
                "classes_per_batch",
            )
        return self

    def knobs(self) -> dict[str, Any]:
        """The fields that the part takes: those that the dataset has for itself."""
        return {name: value for name, value in super().knobs().items() if name not in LabelledSpec.model_fields}


class SizedSpec(LabelledSpec):
    """A labelled dataset whose size is known from the spec.

    A subclass says `num_samples`, the size of the training set before a validation set is held out, and `num_test`.
    """

    if TYPE_CHECKING:

        @property
        def num_samples(self) -> int:
            """Training samples before any are held out."""

    @property
    def num_validation(self) -> int:
        """Samples that are held out of the training set."""
        return num_validation(self.num_samples, self.validation)

    @property
    def num_train(self) -> int:
        """Samples that are trained on."""
        return self.num_samples - self.num_validation


def num_validation(num_samples: int, share: float) -> int:
    """How many of so many training samples are held out for validation.

    Example:
        >>> num_validation(1437, 0.1)
        144
    """
    return round(share * num_samples)
