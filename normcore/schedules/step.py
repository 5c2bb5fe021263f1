"""The lr falls at milestones."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

from normcore.schedules.schedule import warmup_factor


@dataclass(frozen=True, slots=True)
class StepSchedule:
    """The full lr times `gamma` for each milestone that lies behind: once that many updates are done, the lr falls.

    Example:
        >>> schedule = StepSchedule(0.1, 100, warmup_steps=0, milestones=(50, 75), gamma=0.5)
        >>> [schedule.lr(step) for step in (50, 51, 75, 76)]
        [0.1, 0.05, 0.05, 0.025]
    """

    base_lr: float
    num_steps: int
    warmup_steps: int
    milestones: tuple[int, ...]
    gamma: float

    def lr(self, step: int) -> float:
        """The lr of the update that makes `step` updates."""
        falls = bisect_left(self.milestones, step)
        return self.base_lr * warmup_factor(step, self.warmup_steps) * self.gamma**falls
