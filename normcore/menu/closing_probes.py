"""Probes that look back when a training is done."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from normcore.menu.probe import AnyProbeSpec, BnMode, RecurringProbeSpec
from normcore.menu.spec import Multiple


class LrRangeProbeSpec(AnyProbeSpec):
    """Usable learning rates: a short training from the initial weights with a growing lr (Smith 2017, section 3.3)."""

    kind: Literal["lr_range"] = "lr_range"
    low: Multiple = 1e-3
    """First lr, as a multiple of the job's."""
    high: Multiple = 1e3
    """Last lr, as a multiple of the job's."""
    steps: Annotated[int, Field(ge=10, le=100_000)] = 100
    """Updates, from one to the next of which the lr grows by the same factor."""
    fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Part of the initial loss by which the loss must fall for an lr to be usable, and may rise again."""
    target: ClassVar[str] = "normcore.probes.lr_range:LrRangeProbe"
    figure: ClassVar[str] = "normcore.probes.lr_range_figure:draw"
    copies: ClassVar[int] = 5

    @model_validator(mode="after")
    def _low_below_high(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low must be below high, got low {self.low:g} and high {self.high:g}; swap or widen them")
        return self


class PlaneProbeSpec(RecurringProbeSpec):
    """A picture of the loss around the last weights, over two directions, with the path to them (Li et al. 2018)."""

    kind: Literal["plane"] = "plane"
    directions: Literal["random", "trajectory"] = "random"
    """Drawn, as long as the filters they move; or the two that hold most of the path."""
    points: Annotated[int, Field(ge=3, le=101)] = 11
    """Along each side of the picture, whose square is the number of forward passes."""
    reach: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    """How far the picture goes to each side: in lengths of the filters, or in multiples of what holds the path."""
    keep: Annotated[int, Field(ge=4, le=1000)] = 20
    """Weights of the path that are kept at most, in the memory of the host and in snapshots: the steps are those of
    `every`, and every second is dropped whenever there are more."""
    bn_mode: BnMode = "batch"
    """Statistics that layers with running ones normalize by: those of the batch, or the running ones."""
    target: ClassVar[str] = "normcore.probes.plane:PlaneProbe"
    figure: ClassVar[str] = "normcore.probes.plane_figure:draw"
    copies: ClassVar[int] = 6


class InterpolationProbeSpec(AnyProbeSpec):
    """The loss on the straight line to the last weights, from the initial ones or from those another job ended with.

    The first is that of Goodfellow et al. 2015, the second that of Frankle et al. 2020.
    """

    kind: Literal["interpolation"] = "interpolation"
    points: Annotated[int, Field(ge=3, le=1001)] = 21
    """From the first weights to the last, both among them."""
    margin: Annotated[float, Field(ge=0, le=10)] = 0.25
    """How far the line goes on beyond both, as a part of the way between them."""
    bn_mode: BnMode = "batch"
    """Statistics that layers with running ones normalize by: those of the batch; or the running ones, of the end on a
    line from the initial weights, and mixed as the weights are on a line from another job's."""
    job: Annotated[str, Field(pattern=r"^[0-9A-Za-z_.-]{1,64}$")] | None = None
    """The id of another job, of the same model, whose last weights the line comes from; none: the initial weights."""
    target: ClassVar[str] = "normcore.probes.interpolation:InterpolationProbe"
    figure: ClassVar[str] = "normcore.probes.interpolation_figure:draw"
    copies: ClassVar[int] = 5
