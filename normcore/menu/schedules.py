"""Learning rate schedules on the menu."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from normcore.menu.spec import MAX_STEPS, Spec


class ConstantScheduleSpec(Spec):
    """The same lr throughout, after a linear warm-up."""

    kind: Literal["constant"] = "constant"
    warmup_steps: Annotated[int, Field(ge=0, le=MAX_STEPS)] = 0
    """Steps over which the lr rises linearly to its full value."""
    target: ClassVar[str] = "normcore.schedules.constant:ConstantSchedule"


class CosineScheduleSpec(Spec):
    """Half a cosine from the full lr down to a fraction of it at the last step (Loshchilov & Hutter 2017)."""

    kind: Literal["cosine"] = "cosine"
    warmup_steps: Annotated[int, Field(ge=0, le=MAX_STEPS)] = 0
    """Steps over which the lr rises linearly to its full value."""
    final_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The lr at the end, as a fraction of the full lr."""
    target: ClassVar[str] = "normcore.schedules.cosine:CosineSchedule"


class StepScheduleSpec(Spec):
    """The lr falls by `gamma` at each milestone."""

    kind: Literal["step"] = "step"
    warmup_steps: Annotated[int, Field(ge=0, le=MAX_STEPS)] = 0
    """Steps over which the lr rises linearly to its full value."""
    milestones: Annotated[tuple[PositiveInt, ...], Field(strict=False, min_length=1, max_length=64)] = (500, 750)
    """Steps at which the lr falls; increasing."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    target: ClassVar[str] = "normcore.schedules.step:StepSchedule"

    @model_validator(mode="after")
    def _milestones_increase(self) -> Self:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones must increase, got {list(self.milestones)}; sort them, each once")
        return self


ScheduleSpec = ConstantScheduleSpec | CosineScheduleSpec | StepScheduleSpec
