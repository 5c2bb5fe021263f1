"""Probes of the loss as a function of the weights."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from normcore.menu.probe import BnMode, RecurringProbeSpec
from normcore.menu.spec import Multiple

LANDSCAPE_RANGES: dict[str, dict[str, float]] = {
    "vgg": {"low": 0.5, "high": 4.0},
    "deep_linear": {"low": 0.01, "high": 30.0},
}
"""The step sizes of Santurkar et al. 2018, appendix A, as multiples of the lr."""


class LandscapeProbeSpec(RecurringProbeSpec):
    """Loss and gradient along the negative gradient (Santurkar et al. 2018, section 3.1), on the training batch."""

    kind: Literal["landscape"] = "landscape"
    low: Multiple = 0.5
    """Shortest step along the gradient, as a multiple of the current lr."""
    high: Multiple = 4.0
    """Longest step along the gradient, as a multiple of the current lr."""
    points: Annotated[int, Field(ge=2, le=256)] = 8
    """Step sizes from low to high."""
    spacing: Literal["linear", "log"] = "linear"
    """Whether neighbouring step sizes have the same difference or the same ratio."""
    bn_mode: BnMode = "batch"
    """Statistics that layers with running ones normalize by: those of the batch, or the running ones."""
    precision: Literal["training", "float64"] = "training"
    """What is computed in: as the training does, or in float64, where small steps do not drown in rounding."""
    target: ClassVar[str] = "normcore.probes.landscape:LandscapeProbe"
    figure: ClassVar[str] = "normcore.probes.landscape_figure:draw"

    @model_validator(mode="before")
    @classmethod
    def _range_of_the_paper(cls, given: Any) -> Any:
        """`preset`, the name of one of the paper's nets, stands for its low and high."""
        if not isinstance(given, dict) or "preset" not in given:
            return given
        rest = {name: value for name, value in given.items() if name != "preset"}
        if given["preset"] not in [*LANDSCAPE_RANGES]:
            raise ValueError(f"preset must be one of {', '.join(LANDSCAPE_RANGES)}, got {given['preset']!r}")
        if both := sorted(rest.keys() & {"low", "high"}):
            raise ValueError(f"give a preset or low and high, not both, got preset {given['preset']!r} and {both[0]}")
        return rest | LANDSCAPE_RANGES[given["preset"]]

    @model_validator(mode="after")
    def _low_below_high(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low must be below high, got low {self.low:g} and high {self.high:g}; swap or widen them")
        return self
