"""The figure of the probe of the health of norms."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import isnan
from typing import TYPE_CHECKING

from normcore.probes.sheet import LIGHT, Arms, Panel, Theme, draw_panels, layer_curves, say
from normcore.records import Reading

if TYPE_CHECKING:
    from matplotlib.axes import Axes

USUAL = {
    "gamma_mean": "gamma (mean)",
    "beta_mean": "beta (mean)",
    "channel_height": "lowest channel (deviations)",
    "gap_output": "train-eval gap (relative)",
    "below_eps": "share below eps",
}
"""Panels that every figure has, by array."""


def draw(arms: Arms, theme: Theme = LIGHT) -> bytes:
    """Panels over the steps, as PNG, a line per norm layer by its depth.

    Means of gamma and beta; of the lowest output channel the mean in standard deviations; the gap of the output between
    training and evaluation; the share of what is divided by that is below eps. Then whatever else the norms have
    learned or say of themselves: tau, alpha, the residual of Newton's iteration. Models without norms have empty panels
    that say so.
    """
    names = {name for readings in arms.values() for reading in readings for name in reading.arrays}
    # In an order of their own: readings from before a resume bring their arrays in another one.
    more = {
        name: name.removesuffix("_mean").replace("_", " ") + (" (mean)" if name.endswith("_mean") else "")
        for name in sorted(names - {*USUAL, "gap_mean"})
        if name.endswith("_mean") or name == "newton_residual"
    }
    panels = [
        Panel(label, partial(_lines, array=array, legend=index == 0))
        for index, (array, label) in enumerate((USUAL | more).items())
    ]
    return draw_panels("Health of the norms, layer by layer", panels, arms, theme)


def _lines(axes: Axes, readings: Sequence[Reading], theme: Theme, *, array: str, legend: bool) -> None:
    if any(not isnan(value) for reading in readings for value in reading.arrays.get(array, ())):
        layer_curves(axes, readings, array, theme, legend=legend)
        if array == "below_eps":
            axes.set_ylim(-0.05, 1.05)
    elif any(reading.layers for reading in readings):
        say(axes, readings, "none of these norms has it", theme)
    else:
        say(axes, readings, "no norm layers", theme)
