"""Probes of the loss as a function of the weights."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from normcore.menu.occasions import Every
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


class CurvatureProbeSpec(RecurringProbeSpec):
    """The Hessian of the training loss: eigenvalues, trace, spectral density, sharpness along the gradient."""

    kind: Literal["curvature"] = "curvature"
    every: Every = 200
    """Steps between two readings, or one of the occasions: epochs, log_spaced, budget. A reading takes as long as 60 to
    110 steps."""
    eigenvalues: Annotated[int, Field(ge=1, le=100)] = 3
    """How many of the largest eigenvalues; at most iterations."""
    iterations: Annotated[int, Field(ge=2, le=200)] = 20
    """Of Lanczos: products with the Hessian, and copies of the parameters in memory."""
    samples: Annotated[int, Field(ge=2, le=1000)] = 8
    """Random vectors that the trace is estimated from, each a product with the Hessian."""
    density_samples: Annotated[int, Field(ge=1, le=1000)] = 1
    """How many of these the spectral density and the eigenvalues are estimated from, each by so many iterations."""
    bn_mode: BnMode = "batch"
    """Statistics that layers with running ones normalize by: those of the batch, or the running ones."""
    precision: Literal["training", "float64"] = "training"
    """What is computed in: the dtype of the parameters, never half precision; or float64."""
    target: ClassVar[str] = "normcore.probes.curvature:CurvatureProbe"
    figure: ClassVar[str] = "normcore.probes.curvature_figure:draw"

    @property
    def copies(self) -> int:  # type: ignore[override]
        """The vectors of Lanczos, and ten of what is in work."""
        return self.iterations + 10

    @model_validator(mode="after")
    def _enough_of_what_others_are_made_of(self) -> Self:
        for part, count, whole, available in (
            ("eigenvalues", self.eigenvalues, "iterations", self.iterations),
            ("density_samples", self.density_samples, "samples", self.samples),
        ):
            if count > available:
                raise ValueError(
                    f"{part} must be at most {whole}, got {part} {count} and {whole} {available}; raise {whole}, or "
                    f"lower {part}"
                )
        return self
