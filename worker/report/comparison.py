"""Arms of a study side by side: what each measured, as mean over its seeds with the spread between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import fsum
from statistics import fmean, median, stdev

from normcore.records import Point

LAST_FRACTION = 0.1
"""The part of a training whose batches make up its training accuracy."""

THREE_DIGITS_FROM = 0.01
"""Smaller values are shown with two significant digits."""

Curves = Mapping[str, Sequence[Point]]
"""The points of each curve of one job, in the order of their steps."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one job of a study measured."""

    arm: str
    seed: int
    curves: Curves


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over seeds and the sample standard deviation between them; None with a single seed.

    Where some seeds did not measure it, as those that diverged early, it says how many did.

    Example:
        >>> str(Estimate(0.5, 0.01)), str(Estimate(0.00123, None, "1 of 2 seeds"))
        ('0.500±0.010', '0.0012 (1 of 2 seeds)')
    """

    mean: float
    spread: float | None
    share: str = ""

    def __str__(self) -> str:
        text = _short(self.mean) if self.spread is None else f"{_short(self.mean)}±{_short(self.spread)}"
        return f"{text} ({self.share})" if self.share else text


@dataclass(frozen=True, slots=True)
class Measure:
    """A column: its heading, and what it takes from a job's curves; None where the job did not measure it."""

    heading: str
    of: Callable[[Curves], float | None]


@dataclass(frozen=True, slots=True)
class Row:
    """One arm's estimates, in the order of the measures; None where no seed measured it."""

    arm: str
    seeds: tuple[int, ...]
    cells: tuple[Estimate | None, ...]


def last(key: str) -> Callable[[Curves], float | None]:
    """The last value of a curve."""
    return lambda curves: curves[key][-1].value if curves.get(key) else None


def mean_at_the_end(key: str) -> Callable[[Curves], float | None]:
    """The mean of a curve over the last tenth of its points, because single batches are noisy."""

    def measure(curves: Curves) -> float | None:
        points = curves.get(key, ())
        return fmean(point.value for point in points[-max(1, round(LAST_FRACTION * len(points))) :]) if points else None

    return measure


def median_over_steps(key: str) -> Callable[[Curves], float | None]:
    """The median of a curve."""
    return lambda curves: median(point.value for point in curves[key]) if curves.get(key) else None


def median_width(low: str, high: str) -> Callable[[Curves], float | None]:
    """The median, over the steps, of how far one curve is above another."""

    def measure(curves: Curves) -> float | None:
        floor = {point.step: point.value for point in curves.get(low, ())}
        widths = [point.value - floor[point.step] for point in curves.get(high, ()) if point.step in floor]
        return median(widths) if widths else None

    return measure


def total(key: str) -> Callable[[Curves], float | None]:
    """The sum of a curve, which is 0 where a job measured other curves only."""
    return lambda curves: fsum(point.value for point in curves.get(key, ())) if curves else None


MEASURES = (
    Measure("test accuracy", last("test/accuracy")),
    Measure("test accuracy, statistics recomputed", last("test/accuracy_recomputed")),
    Measure("test accuracy, noise on", last("test/accuracy_noisy")),
    Measure("train accuracy", mean_at_the_end("train/accuracy")),
    Measure("loss band", median_width("landscape/loss_min", "landscape/loss_max")),
    Measure("effective beta x lr", median_over_steps("landscape/effective_beta_times_lr")),
    Measure("points not finite", total("landscape/nonfinite_points")),
)
"""What a smoothness study compares. Running statistics that were gathered under noise do not fit a test without it;
recomputed ones do, and those that were gathered fit a test under the same noise. Points along the gradient that were
not finite are in neither band nor beta: an arm that has some is rougher than these say."""


def compare(outcomes: Sequence[Outcome], measures: Sequence[Measure] = MEASURES) -> tuple[Row, ...]:
    """A row for each arm, in the order in which the arms first appear.

    Example:
        >>> curves = [{"test/accuracy": [Point("test/accuracy", 100, value)]} for value in (0.5, 0.75)]
        >>> (row,) = compare([Outcome("batch", 0, curves[0]), Outcome("batch", 1, curves[1])])
        >>> row.arm, str(row.cells[0]), row.cells[1]
        ('batch', '0.625±0.177', None)
    """
    arms: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        arms.setdefault(outcome.arm, []).append(outcome)
    return tuple(
        Row(
            arm,
            tuple(outcome.seed for outcome in members),
            tuple(_estimate([measure.of(outcome.curves) for outcome in members]) for measure in measures),
        )
        for arm, members in arms.items()
    )


def _estimate(values: Sequence[float | None]) -> Estimate | None:
    measured = [value for value in values if value is not None]
    if not measured:
        return None
    share = f"{len(measured)} of {len(values)} seeds" if len(measured) < len(values) else ""
    return Estimate(fmean(measured), stdev(measured) if len(measured) > 1 else None, share)


def _short(value: float) -> str:
    return f"{value:.3f}" if abs(value) >= THREE_DIGITS_FROM or value == 0 else f"{value:.2g}"
