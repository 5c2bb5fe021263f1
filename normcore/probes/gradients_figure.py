"""The figure of the gradients probe."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import isfinite
from typing import TYPE_CHECKING

from normcore.probes.sheet import LIGHT, Arms, Panel, Theme, curve, draw_panels, layer_curves
from normcore.records import Reading

if TYPE_CHECKING:
    from matplotlib.axes import Axes

USUAL = 1e-3
"""Update over weight, of which one reads that it should be about that."""


def draw(arms: Arms, theme: Theme = LIGHT) -> bytes:
    """Five panels over the steps, as PNG: gradient norm, update ratio with a line at 1e-3 and cosine, a line per layer;
    noise scale; slope over the depth with a line at 0.
    """
    panels = (
        Panel("gradient norm (L2)", partial(_lines, name="gradient_norm", legend=True)),
        Panel("slope over depth\n(decades per layer)", _slope, scale="linear"),
        Panel("update / weight\n(L2 norms)", _updates),
        Panel("cosine of a gradient\nwith the next step's", _cosines, scale="linear"),
        Panel("gradient noise scale\n(samples)", _noise),
    )
    return draw_panels("Gradients, layer by layer", panels, arms, theme)


def _lines(axes: Axes, readings: Sequence[Reading], theme: Theme, *, name: str, legend: bool = False) -> None:
    layer_curves(axes, readings, name, theme, legend=legend)


def _slope(axes: Axes, readings: Sequence[Reading], theme: Theme) -> None:
    curve(axes, readings, "depth_slope", theme.main)
    axes.axhline(0.0, color=theme.contrast, linestyle="--", linewidth=1, label="above: vanishing, below: exploding")
    axes.margins(y=0.3)
    axes.legend(loc="upper right", frameon=False, fontsize="small")


def _updates(axes: Axes, readings: Sequence[Reading], theme: Theme) -> None:
    layer_curves(axes, readings, "update_ratio", theme)
    axes.axhline(USUAL, color=theme.contrast, linestyle="--", linewidth=1, label=f"{USUAL:g}: usual")
    axes.legend(loc="best", frameon=False, fontsize="small")


def _cosines(axes: Axes, readings: Sequence[Reading], theme: Theme) -> None:
    layer_curves(axes, readings, "cosine", theme)
    curve(axes, readings, "cosine", theme.contrast, label="all parameters", style="--")
    axes.set_ylim(-1.05, 1.05)
    axes.legend(loc="lower right", frameon=False, fontsize="small")


def _noise(axes: Axes, readings: Sequence[Reading], theme: Theme) -> None:
    curve(axes, readings, "noise_scale", theme.contrast, label="of a reading", style="none")
    # Of all so far: mean noise over mean signal, each of which a single reading estimates badly.
    sums, seen = [0.0, 0.0], []
    for reading in readings:
        trace, signal, samples = reading.arrays["noise"]
        if isfinite(trace + signal + samples):
            sums = [sums[0] + samples * trace, sums[1] + signal]
            if sums[1] > 0:
                seen.append((reading.step, sums[0] / sums[1]))
    steps, means = zip(*seen, strict=True) if seen else ((), ())
    axes.plot(steps, means, color=theme.main, linewidth=1, label="of all readings so far")
    axes.legend(loc="best", frameon=False, fontsize="small")
