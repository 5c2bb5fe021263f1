"""Half a cosine."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi

from normcore.schedules.schedule import warmup_factor


@dataclass(frozen=True, slots=True)
class CosineSchedule:
    """Half a cosine from the full lr, at the first step after warm-up, down to a fraction of it, at the last step.

    lr(t) = base_lr (f + (1 - f) (1 + cos(pi (t - t_0) / (num_steps - t_0))) / 2), with f = final_fraction and t_0 the
    step that has the full lr: the last of the warm-up or the first of all (Loshchilov & Hutter 2017, eq. 5).

    Example:
        >>> schedule = CosineSchedule(0.1, 5, warmup_steps=0, final_fraction=0.0)
        >>> [round(schedule.lr(step), 3) for step in (1, 2, 3, 4, 5)]
        [0.1, 0.085, 0.05, 0.015, 0.0]
    """

    base_lr: float
    num_steps: int
    warmup_steps: int
    final_fraction: float

    def lr(self, step: int) -> float:
        """The lr of the update that makes `step` updates."""
        full = max(1, self.warmup_steps)
        if step <= full:
            return self.base_lr * warmup_factor(step, self.warmup_steps)
        fallen = (1 - cos(pi * (step - full) / (self.num_steps - full))) / 2
        return self.base_lr * (1 - (1 - self.final_fraction) * fallen)
