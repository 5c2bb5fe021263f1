"""The figure of the gradients probe."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import TYPE_CHECKING

from normcore.probes.sheet import LIGHT, Arms, Panel, Theme, curve, draw_panels, layer_curves
from normcore.records import Reading

if TYPE_CHECKING:
    from matplotlib.axes import Axes

USUAL = 1e-3
"""Update over weight, of which one reads that it should be about that."""
WINDOW = 5
"""Readings that a point of the line of the noise scale is of."""


def draw(arms: Arms, theme: Theme = LIGHT) -> bytes:
    """Five panels over the steps, as PNG: gradient norm, update ratio with a line at 1e-3 and cosine, a line per layer;
    slope over the depth with a line at 0; noise scale.
    """
    panels = (
        Panel("gradient norm (L2)", _norms),
        Panel("slope over depth\n(decades per layer)", _slope, scale="linear"),
        Panel("update / weight\n(L2 norms)", _updates),
        Panel("cosine of a gradient\nwith the next step's", _cosines, scale="linear"),
        Panel("gradient noise scale\n(samples)", _noise),
    )
    return draw_panels("Gradients, layer by layer", panels, arms, theme)


def _norms(axes: Axes, readings: Sequence[Reading], theme: Theme) -> None:
    layer_curves(axes, readings, "gradient_norm", theme)
    if axes.lines:
        # Room for the legend above the lines.
        axes.margins(y=0.35)
        axes.legend(loc="upper right", frameon=False, fontsize="small")


def _slope(axes: Axes, readings: Sequence[Reading], theme: Theme) -> None:
    curve(axes, readings, "depth_slope", theme.main)
    _line(axes, 0.0, "above: vanishing, below: exploding", theme)


def _updates(axes: Axes, readings: Sequence[Reading], theme: Theme) -> None:
    layer_curves(axes, readings, "update_ratio", theme)
    _line(axes, USUAL, f"{USUAL:g}: usual", theme)


def _cosines(axes: Axes, readings: Sequence[Reading], theme: Theme) -> None:
    layer_curves(axes, readings, "cosine", theme)
    curve(axes, readings, "cosine_total", theme.contrast, style="--")
    axes.legend(handles=axes.lines[-1:], labels=["all parameters"], loc="upper right", frameon=False, fontsize="small")
    axes.set_ylim(-1.05, 1.55)


def _line(axes: Axes, value: float, label: str, theme: Theme) -> None:
    line = axes.axhline(value, color=theme.contrast, linestyle="--", linewidth=1)
    axes.margins(y=0.3)
    axes.legend(handles=[line], labels=[label], loc="upper right", frameon=False, fontsize="small")


def _noise(axes: Axes, readings: Sequence[Reading], theme: Theme) -> None:
    curve(axes, readings, "noise_scale_total", theme.contrast, label="of a reading", style="none")
    # Mean noise over mean signal, each of which a single reading estimates badly.
    seen = [(reading.step, *reading.arrays["noise"]) for reading in readings]
    finite = [each for each in seen if all(map(isfinite, each))]
    steps, scales = [], []
    for last in range(len(finite)):
        some = finite[max(0, last + 1 - WINDOW) : last + 1]
        signal = sum(each[2] for each in some)
        if signal > 0:
            steps.append(finite[last][0])
            scales.append(sum(each[1] * each[3] for each in some) / signal)
    axes.plot(steps, scales, color=theme.main, linewidth=1, label=f"of the last {WINDOW} readings")
    axes.margins(y=0.3)
    axes.legend(loc="upper right", ncols=2, frameon=False, fontsize="small")
