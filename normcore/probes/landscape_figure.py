"""The figure of the landscape probe."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from normcore.probes.sheet import LIGHT, Arms, Panel, Theme, curve, draw_panels
from normcore.records import Reading

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(arms: Arms, theme: Theme = LIGHT) -> bytes:
    """Three panels over the steps, as PNG: loss band, gradient change band, effective beta times lr with a line at 2.

    Steps of which some points were not finite are marked along the top of the first panel.
    """
    panels = (
        Panel("loss along the gradient\n(nats, or squared error)", partial(_band, name="loss")),
        Panel("gradient change (L2 norm)", partial(_band, name="gradient_change")),
        Panel("effective beta x lr (no unit)", _beta),
    )
    return draw_panels("Smoothness along the gradient", panels, arms, theme)


def _band(axes: Axes, readings: Sequence[Reading], theme: Theme, *, name: str) -> None:
    seen = [reading for reading in readings if f"{name}_max" in reading.scalars]
    low, high = ([reading.scalars[f"{name}_{end}"] for reading in seen] for end in ("min", "max"))
    axes.fill_between([reading.step for reading in seen], low, high, color=theme.main, alpha=0.3, linewidth=0)
    for end in ("min", "max"):
        curve(axes, seen, f"{name}_{end}", theme.main)
    if name == "loss":
        _mark_blown(axes, readings, theme)


def _mark_blown(axes: Axes, readings: Sequence[Reading], theme: Theme) -> None:
    blown = [reading.step for reading in readings if "nonfinite_points" in reading.scalars]
    if blown:
        top = axes.get_xaxis_transform()
        axes.plot(blown, [0.97] * len(blown), "v", color=theme.contrast, transform=top, label="points not finite")
        axes.legend(loc="lower left", frameon=False)


def _beta(axes: Axes, readings: Sequence[Reading], theme: Theme) -> None:
    curve(axes, readings, "effective_beta_times_lr", theme.main)
    axes.axhline(2.0, color=theme.contrast, linestyle="--", linewidth=1, label="2: edge of stability")
    axes.legend(loc="best", frameon=False, fontsize="small")
