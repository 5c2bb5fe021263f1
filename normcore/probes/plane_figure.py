"""The figure of the plane."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np

from normcore.probes.sheet import LIGHT, Arms, Theme, colours, facts_of
from normcore.records import Reading

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOG_FROM = 10.0
"""Ratio of the largest to the smallest loss from which the levels are equal ratios."""
LEVELS = 15
UNITS = {"random": "filter norms", "trajectory": "L2 norm of weights"}


def draw(arms: Arms, theme: Theme = LIGHT) -> bytes:
    """Contours of the loss with the path, as PNG: a panel per training, of several readings of one the last.

    The trainings share their levels, and not their axes. Where no loss is finite the ground is seen.

    Args:
        arms: From left to right.
        theme: Colours.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib import rc_context
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm
    from matplotlib.figure import Figure

    columns = len(arms)
    height, width = 4.6, 2.0 + 4.0 * columns
    levels, logarithmic = _levels([readings[-1] for readings in arms.values() if readings])
    with rc_context(colours(theme)):
        figure = Figure(figsize=(width, height), dpi=120)
        margins = {"left": 0.8 / width, "right": 1 - 1.3 / width, "bottom": 0.6 / height, "top": 1 - 0.95 / height}
        grid = figure.subplots(1, columns, squeeze=False, gridspec_kw=margins | {"wspace": 0.25})
        for axes, (name, readings) in zip(grid[0], arms.items(), strict=True):
            axes.set_title(name, fontsize="medium")
            if readings:
                _paint(axes, readings[-1], levels, theme)
        if len(levels):
            bar = figure.add_axes((1 - 1.15 / width, 0.6 / height, 0.18 / width, 1 - 1.55 / height))
            shades = ScalarMappable(BoundaryNorm(levels, 256), theme.scale)
            spacing = "uniform" if logarithmic else "proportional"
            ticks = [float(level) for level in levels[:: (len(levels) - 1) // 7 or 1]]
            drawn = figure.colorbar(
                shades, cax=bar, spacing=spacing, ticks=ticks, label="loss (nats, or squared error)"
            )
            drawn.ax.set_yticklabels([f"{tick:.3g}" for tick in ticks])
        figure.suptitle("The loss around the last weights", y=1 - 0.18 / height)
        if said := facts_of(arms):
            said += "; the axes have scales of their own"
            figure.text(0.5, 1 - 0.45 / height, said, ha="center", va="center", fontsize="small", color=theme.faint)
        png = BytesIO()
        figure.savefig(png, format="png")
    return png.getvalue()


def _levels(readings: Sequence[Reading]) -> tuple[list[float], bool]:
    """Losses between which there is one colour, and whether they are equal ratios; none where there is nothing to tell
    apart.
    """
    losses = [loss for reading in readings for loss in reading.arrays["loss"] if isfinite(loss)]
    if not losses or not min(losses) < max(losses):
        return [], False
    low, high = min(losses), max(losses)
    logarithmic = low > 0 and high > LOG_FROM * low
    levels = np.geomspace(low, high, LEVELS) if logarithmic else np.linspace(low, high, LEVELS)
    distinct: list[float] = np.unique(levels).tolist()
    return (distinct, logarithmic) if len(distinct) > 1 else ([], False)


def _paint(axes: Axes, reading: Reading, levels: list[float], theme: Theme) -> None:
    from matplotlib.ticker import MaxNLocator

    x, y = (np.asarray(reading.arrays[name]) for name in ("x", "y"))
    unit = UNITS.get(reading.facts.get("directions", ""), "no unit")
    axes.set_xlabel(f"first direction ({unit})")
    axes.set_ylabel(f"second direction ({unit})")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5))
    if levels:
        losses = np.ma.masked_invalid(np.asarray(reading.arrays["loss"]).reshape(len(y), len(x)))
        axes.contourf(x, y, losses, levels=levels, cmap=theme.scale, norm=_norm(levels))
        axes.contour(x, y, losses, levels=levels, colors=theme.ground, linewidths=0.4)
    steps = np.asarray(reading.arrays["path_step"])
    walked = np.isfinite(steps)
    across, up = (np.append(np.asarray(reading.arrays[f"path_{name}"])[walked], 0.0) for name in ("x", "y"))
    edge: dict[str, Any] = {"markeredgecolor": "#000000", "markeredgewidth": 0.6}
    label = f"steps {steps[walked][0]:.0f} to {reading.step}" if walked.any() else None
    axes.plot(across, up, ".-", color=theme.contrast, linewidth=1.2, markersize=6, label=label, **edge)
    axes.plot(0, 0, "*", color=theme.contrast, markersize=13, label="the last weights", **edge)
    axes.set_xlim(x.min(), x.max())
    axes.set_ylim(y.min(), y.max())
    share = f", {reading.scalars['explained']:.1%} of the path" if "explained" in reading.scalars else ""
    legend = axes.legend(loc="best", framealpha=0.85, fontsize="x-small", title=f"in the plane{share}" if share else "")
    legend.get_title().set_fontsize("x-small")


def _norm(levels: list[float]) -> object:
    from matplotlib.colors import BoundaryNorm

    return BoundaryNorm(levels, 256)
