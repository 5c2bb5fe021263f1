"""What every spec is, and the bounds that several share."""

from __future__ import annotations

import importlib
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_PARAMETERS = 500_000_000
"""A model with more parameters than this is refused by the preview."""

MAX_STEPS = 100_000_000

Eps = Annotated[float, Field(gt=0, le=1)]
NonNegative = Annotated[float, Field(ge=0, le=1e6)]
Lr = Annotated[float, Field(gt=0, le=1e6)]
Multiple = Annotated[float, Field(gt=0, le=1e30)]
Activation = Literal["relu", "sigmoid", "tanh"]
Dropout = Annotated[float, Field(ge=0, lt=1)]
Init = Literal["glorot", "he"]
NormPlacement = Literal["before", "after"]
Divisibility = Literal["error", "nearest"]
Form = Literal["images", "sequences", "tokens", "vectors"]
"""What a sample is: `(C, H, W)`, `(L, D)`, `(L,)` in int64 with padding, or `(D,)`."""
Task = Literal["classification", "regression"]
"""Whether a label is a class, for cross entropy, or a vector of targets, for the summed squared error."""
Momentum = Annotated[float, Field(gt=0, le=1)]
"""Weight of the newest batch in running statistics."""


class Misfit(ValueError):
    """Fields that do not go together. `at` is the way to the one to mend, below the spec whose validator says so.

    Example:
        >>> Misfit("warmup_steps is 9, and the job has 5 steps; lower it", "schedule", "warmup_steps").at
        ('schedule', 'warmup_steps')
    """

    def __init__(self, detail: str, *at: str | int) -> None:
        super().__init__(detail)
        self.at = at


class Spec(BaseModel):
    """A frozen description of a part. Unknown fields, wrong types, infinities and NaN are refused, never swallowed.

    Example:
        >>> from normcore.menu.norms import BatchNormSpec
        >>> BatchNormSpec(eps=1e-3).model_dump()
        {'kind': 'batch', 'eps': 0.001, 'momentum': 0.1, 'estimator': 'ema', 'affine': True}
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    target: ClassVar[str] = ""
    """`module:Class` that this spec builds."""

    def knobs(self) -> dict[str, Any]:
        """The fields that the part takes as keyword arguments: everything but `kind`."""
        return {name: getattr(self, name) for name in type(self).model_fields if name != "kind"}

    def part(self) -> Any:
        """The class that `target` names, imported when asked for (most parts bring torch)."""
        module, _, name = self.target.partition(":")
        return getattr(importlib.import_module(module), name)
