"""The figure of the probe of internal covariate shift."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from normcore.probes.sheet import LIGHT, Arms, Panel, Theme, draw_panels, layer_curves
from normcore.records import Reading

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(arms: Arms, theme: Theme = LIGHT) -> bytes:
    """Four panels over the steps, as PNG, a line per layer: the cosine and the distance of the gradients of before and
    after the update of the layers in front, and how mean and variance of the layer's activations moved.
    """
    panels = (
        Panel("cosine (1: no shift)", _cosine, "linear"),
        Panel("gradient change (L2)", partial(_lines, name="l2")),
        Panel("drift of the mean", partial(_lines, name="mean_drift")),
        Panel("drift of the variance", partial(_lines, name="var_drift")),
    )
    return draw_panels("Internal covariate shift, layer by layer", panels, arms, theme)


def _cosine(axes: Axes, readings: Sequence[Reading], theme: Theme) -> None:
    layer_curves(axes, readings, "cosine", theme, legend=True)
    axes.set_ylim(-1.05, 1.05)


def _lines(axes: Axes, readings: Sequence[Reading], theme: Theme, *, name: str) -> None:
    layer_curves(axes, readings, name, theme)
    # Drifts are often small: 0.00015 would take the place of the label.
    axes.ticklabel_format(axis="y", scilimits=(-2, 3))
