"""When a probe reads, where that is not simply every so many steps."""

from __future__ import annotations

from math import log10
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from normcore.menu.spec import Spec


class EpochsSpec(Spec):
    """At the end of every so many passes over the training data."""

    kind: Literal["epochs"] = "epochs"
    every: PositiveInt = 1
    """Epochs between two readings."""


class LogSpacedSpec(Spec):
    """At steps 1, 10, 100, ... and at as many between them as asked for, evenly on a logarithmic scale.

    What changes fast at first and slowly later is seen in both.
    """

    kind: Literal["log_spaced"] = "log_spaced"
    per_decade: Annotated[int, Field(ge=1, le=1000)] = 10
    """Readings between one power of ten and the next."""


class BudgetSpec(Spec):
    """As often as it may cost: a fraction of the time of the training's own steps.

    The first reading waits until the cost that the probe states fits the budget, each later one until that of the one
    before does. The clock decides, so the steps of the readings differ from run to run.
    """

    kind: Literal["budget"] = "budget"
    fraction: Annotated[float, Field(gt=0, le=100)] = 0.1
    """Time of the readings over the time of the steps, at most."""


OccasionSpec = Annotated[EpochsSpec | LogSpacedSpec | BudgetSpec, Field(discriminator="kind")]
Every = PositiveInt | OccasionSpec


def is_log_spaced(step: int, per_decade: int) -> bool:
    """Whether a step is 10^(i / per_decade), rounded, for some i.

    Example:
        >>> [step for step in range(1, 101) if is_log_spaced(step, 3)]
        [1, 2, 5, 10, 22, 46, 100]
    """
    # From floats to the integers around, then back: no float decides which step it is.
    exponent = round(per_decade * log10(step))
    return any(round(10 ** (i / per_decade)) == step for i in (exponent - 1, exponent, exponent + 1) if i >= 0)
