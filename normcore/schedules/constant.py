"""The same lr throughout."""

from __future__ import annotations

from dataclasses import dataclass

from normcore.schedules.schedule import warmup_factor


@dataclass(frozen=True, slots=True)
class ConstantSchedule:
    """The full lr at every step after a linear warm-up.

    Example:
        >>> schedule = ConstantSchedule(0.1, 1000, warmup_steps=2)
        >>> [schedule.lr(step) for step in (1, 2, 1000)]
        [0.05, 0.1, 0.1]
    """

    base_lr: float
    num_steps: int
    warmup_steps: int

    def lr(self, step: int) -> float:
        """The lr of the update that makes `step` updates."""
        return self.base_lr * warmup_factor(step, self.warmup_steps)
