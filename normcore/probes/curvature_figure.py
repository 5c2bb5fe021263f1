"""The figure of the curvature probe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from normcore.probes.sheet import LIGHT, Arms, Panel, Theme, curve, draw_panels
from normcore.records import Reading

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DEPTH = 1e-8
"""The least density that is drawn, over the largest: single eigenvalues of ten million are to be seen."""


def draw(arms: Arms, theme: Theme = LIGHT) -> bytes:
    """Three panels, as PNG: over the steps the largest eigenvalues and the sharpness along the gradient, times lr, with
    a line at 2, and the trace with a band of one standard error to both sides; and the spectral density of the last
    reading over the eigenvalues, the largest of which are marked.
    """
    panels = (
        Panel("curvature x lr (no unit)", _eigenvalues),
        Panel("trace (loss / weight²)", _trace, scale="linear"),
        Panel("density (weight² / loss)", _density, across="eigenvalue, last reading (loss / weight²)"),
    )
    return draw_panels("Curvature of the loss", panels, arms, theme)


def _eigenvalues(axes: Axes, readings: Sequence[Reading], theme: Theme) -> None:
    curve(axes, readings, "eigenvalue_max_times_lr", theme.main, label="largest eigenvalue")
    steps = [reading.step for reading in readings]
    rows = [reading.arrays["eigenvalues_times_lr"] for reading in readings]
    for rank in range(1, len(rows[0]) if rows else 0):
        label = "next largest" if rank == 1 else None
        axes.plot(steps, [row[rank] for row in rows], color=theme.main, alpha=0.55, linewidth=1, label=label)
    curve(axes, readings, "sharpness_times_lr", theme.third, style=":", label="along the gradient")
    axes.axhline(2.0, color=theme.contrast, linestyle="--", linewidth=1, label="2: edge of stability")
    # Below the panel, where those that share its axis have their labels and this one has none.
    axes.legend(
        ncols=2,
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        borderaxespad=0.3,
        labelspacing=0.2,
        frameon=False,
        fontsize="small",
    )


def _trace(axes: Axes, readings: Sequence[Reading], theme: Theme) -> None:
    seen = [reading for reading in readings if "trace" in reading.scalars]
    traces = np.asarray([reading.scalars["trace"] for reading in seen])
    errors = np.asarray([reading.arrays["trace_error"][0] for reading in seen])
    steps = [reading.step for reading in seen]
    axes.fill_between(steps, traces - errors, traces + errors, color=theme.main, alpha=0.3, linewidth=0)
    curve(axes, seen, "trace", theme.main)


def _density(axes: Axes, readings: Sequence[Reading], theme: Theme) -> None:
    if not readings:
        return
    grid, share = (np.asarray(readings[-1].arrays[name]) for name in ("density_grid", "density"))
    drawn = np.where(share > DEPTH * share.max(), share, np.nan)
    axes.plot(grid, drawn, color=theme.main, linewidth=1)
    axes.axvline(0.0, color=theme.faint, linewidth=0.8)
    values, bottom = readings[-1].arrays["eigenvalues"], axes.get_xaxis_transform()
    axes.plot(values, [0.04] * len(values), "^", color=theme.contrast, markersize=5, transform=bottom, label="largest")
    axes.legend(loc="upper right", frameon=False, fontsize="small", handletextpad=0.1)
