"""When a probe reads, where that is not simply every so many steps."""

from __future__ import annotations

import json
from math import log10
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, PositiveInt, Tag

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


OCCASIONS: dict[str, type[Spec]] = {"epochs": EpochsSpec, "log_spaced": LogSpacedSpec, "budget": BudgetSpec}
"""By the kind that they are asked for by."""


def _of_a_kind(given: Any) -> Any:
    """What is neither steps nor an occasion is refused in one sentence, and not in one for each of them."""
    if isinstance(given, Spec) or (isinstance(given, int) and not isinstance(given, bool) and given >= 1):
        return given
    kind = given.get("kind") if isinstance(given, dict) else None
    if kind not in [*OCCASIONS]:
        if not isinstance(given, dict):
            got = json.dumps(given, default=repr)
        else:
            got = f"kind {json.dumps(kind, default=repr)}" if "kind" in given else "an object without kind"
        raise ValueError(
            f"every must be a whole number of steps of at least 1, or one of the occasions {', '.join(OCCASIONS)} such "
            f'as {{"kind": "budget"}}, got {got[:60]}'
        )
    return given


def _kind(given: Any) -> str:
    if isinstance(given, int):
        return "steps"
    return str(given["kind"] if isinstance(given, dict) else given.kind)


Every = Annotated[
    Annotated[PositiveInt, Tag("steps")]
    | Annotated[EpochsSpec, Tag("epochs")]
    | Annotated[LogSpacedSpec, Tag("log_spaced")]
    | Annotated[BudgetSpec, Tag("budget")],
    Discriminator(_kind),
    BeforeValidator(_of_a_kind),
]


def is_log_spaced(step: int, per_decade: int) -> bool:
    """Whether a step is 10^(i / per_decade), rounded, for some i.

    Example:
        >>> [step for step in range(1, 101) if is_log_spaced(step, 3)]
        [1, 2, 5, 10, 22, 46, 100]
    """
    # From floats to the integers around, then back: no float decides which step it is.
    exponent = round(per_decade * log10(step))
    return any(round(10 ** (i / per_decade)) == step for i in (exponent - 1, exponent, exponent + 1) if i >= 0)
