"""What every schedule promises, and the warm-up they share."""

from __future__ import annotations

from typing import Protocol


class Schedule(Protocol):
    """The lr over a training, a pure function of the step, so that a resumed training needs no state of it.

    Every schedule is built as `(base_lr, num_steps, **knobs)`.
    """

    def lr(self, step: int) -> float:
        """The lr of the update that makes `step` updates: the first update is step 1, the last is `num_steps`."""
        ...


def warmup_factor(step: int, warmup_steps: int) -> float:
    """The fraction of the full lr at a step of a linear warm-up, whose last step has the full lr.

    Example:
        >>> [warmup_factor(step, 4) for step in (1, 2, 3, 4, 5)]
        [0.25, 0.5, 0.75, 1.0, 1.0]
    """
    return step / warmup_steps if step < warmup_steps else 1.0
