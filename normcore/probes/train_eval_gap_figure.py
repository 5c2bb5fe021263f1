"""The figure of the probe of the gap between training and evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from normcore.probes.sheet import LIGHT, Arms, Panel, Theme, draw_panels, layer_curves, say
from normcore.records import Reading

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(arms: Arms, theme: Theme = LIGHT) -> bytes:
    """Three panels over the steps, as PNG: the gaps of output, mean and spread, a line per layer.

    Models without running statistics have empty panels that say so.
    """
    panels = (
        Panel("output (relative)", partial(_lines, name="output", legend=True)),
        Panel("mean (standard deviations)", partial(_lines, name="mean")),
        Panel("spread (relative)", partial(_lines, name="spread")),
    )
    return draw_panels("Gap between training and evaluation, layer by layer", panels, arms, theme)


def _lines(axes: Axes, readings: Sequence[Reading], theme: Theme, *, name: str, legend: bool = False) -> None:
    if any(reading.arrays[name] for reading in readings):
        layer_curves(axes, readings, name, theme, legend=legend)
    else:
        say(axes, readings, "no running statistics", theme)
