"""Which evaluation of a training was the best so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any, Self

from normcore.evaluation import Evaluation


@dataclass(frozen=True, slots=True)
class Best:
    """The best evaluation so far of the validation set, and the step that it came after.

    Only samples that were held out of training for this may choose: a step that the test set chose looks better on the
    test set than it is, so where there is no validation set there is no best.
    """

    step: int
    value: float
    """The accuracy; in a regression the loss."""

    @classmethod
    def of(cls, facts: Mapping[str, Any] | None) -> Self | None:
        """What `facts` of a snapshot tell."""
        return None if facts is None else cls(facts["step"], facts["value"])

    def facts(self) -> dict[str, Any]:
        """Plain JSON.

        Example:
            >>> Best.of(Best(40, 0.75).facts())
            Best(step=40, value=0.75)
        """
        return asdict(self)


def best_of(best: Best | None, step: int, evaluation: Evaluation) -> Best | None:
    """The better of the best so far and an evaluation at a step: by its accuracy, or where it has none by its loss.

    Of equals the earlier one stays, and a loss that is not finite is no result.

    Example:
        >>> best = best_of(None, 10, Evaluation(loss=0.5, accuracy=0.75))
        >>> best_of(best, 20, Evaluation(loss=0.1, accuracy=0.75)), best_of(best, 30, Evaluation(0.9, accuracy=0.8))
        (Best(step=10, value=0.75), Best(step=30, value=0.8))
    """
    regression = evaluation.accuracy is None
    value = evaluation.loss if evaluation.accuracy is None else evaluation.accuracy
    if not isfinite(evaluation.loss):
        return best
    if best is not None and (value >= best.value if regression else value <= best.value):
        return best
    return Best(step, value)
