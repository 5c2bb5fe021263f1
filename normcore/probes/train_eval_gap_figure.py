"""The figure of the probe of the gap between training and evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING

from normcore.records import Reading

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MARGINS = {"left": 0.12, "right": 0.97, "bottom": 0.07, "top": 0.94, "hspace": 0.08}

PANELS = {
    "output": "output (relative)",
    "mean": "mean (standard deviations)",
    "spread": "spread (relative)",
}

LOG_FROM = 50.0
"""Ratio of a panel's largest to its smallest value from which its axis is logarithmic."""


def draw(readings: Sequence[Reading]) -> bytes:
    """Three panels over the steps, as PNG: the gaps of output, mean and spread, a line per layer from dark to bright.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    # Not pyplot: it keeps global state and would open a window where there is a screen.
    figure = Figure(figsize=(7.0, 7.5), dpi=120)
    # Fixed margins: working them out (layout="constrained") takes as long as all the rest.
    panels = figure.subplots(len(PANELS), 1, sharex=True, gridspec_kw=MARGINS)
    for axes, (name, label) in zip(panels, PANELS.items(), strict=True):
        _lines(axes, readings, name)
        axes.set_ylabel(label)
    if readings and readings[0].arrays["output"]:
        panels[0].legend(loc="upper right", frameon=False)
    panels[-1].set_xlabel("step (updates)")
    figure.suptitle("Gap between training and evaluation, layer by layer", y=0.98)
    png = BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


def _lines(axes: Axes, readings: Sequence[Reading], name: str) -> None:
    from matplotlib import colormaps

    steps = [reading.step for reading in readings]
    layers = list(zip(*(reading.arrays[name] for reading in readings), strict=True))
    for index, values in enumerate(layers):
        label = {0: "first layer", len(layers) - 1: "last layer"}.get(index)
        # The brightest end of the scale is hard to see on white.
        colour = colormaps["viridis"](0.9 * index / max(1, len(layers) - 1))
        axes.plot(steps, values, ".-", color=colour, linewidth=1, markersize=3, label=label)
    axes.grid(visible=True, alpha=0.3)
    axes.yaxis.set_label_coords(-0.09, 0.5)
    known = [value for values in layers for value in values if 0 <= value < float("inf")]
    if known and 0 < LOG_FROM * min(known) < max(known):
        axes.set_yscale("log")
