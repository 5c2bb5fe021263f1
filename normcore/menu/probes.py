"""Probes on the menu."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from normcore.menu.spec import Multiple, Spec


class LandscapeProbeSpec(Spec):
    """Loss and gradient along the negative gradient (Santurkar et al. 2018, section 3.1), on the training batch."""

    kind: Literal["landscape"] = "landscape"
    every: PositiveInt = 50
    """Steps between two readings."""
    low: Multiple = 0.5
    """Shortest step along the gradient, as a multiple of the current lr."""
    high: Multiple = 4.0
    """Longest step along the gradient, as a multiple of the current lr."""
    points: Annotated[int, Field(ge=2, le=256)] = 8
    """Step sizes, evenly spaced from low to high."""
    target: ClassVar[str] = "normcore.probes.landscape:LandscapeProbe"

    @model_validator(mode="after")
    def _low_below_high(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low must be below high, got low {self.low:g} and high {self.high:g}; swap or widen them")
        return self


class TrainEvalGapProbeSpec(Spec):
    """How differently each layer with running statistics evaluates from how it trains, on the training batch."""

    kind: Literal["train_eval_gap"] = "train_eval_gap"
    every: PositiveInt = 50
    """Steps between two readings."""
    target: ClassVar[str] = "normcore.probes.train_eval_gap:TrainEvalGapProbe"


ProbeSpec = LandscapeProbeSpec | TrainEvalGapProbeSpec
