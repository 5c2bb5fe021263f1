"""The figure of the interpolation."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, nan
from typing import TYPE_CHECKING

from normcore.probes.sheet import LIGHT, Arms, Panel, Theme, draw_panels
from normcore.records import Reading

if TYPE_CHECKING:
    from matplotlib.axes import Axes


SHORT = 8
"""Characters of a job's id that stand below a panel."""


def draw(arms: Arms, theme: Theme = LIGHT) -> bytes:
    """The loss over the place on the line, as PNG, with the straight line between the losses of its ends.

    Of several readings the last is drawn.
    """
    panels = (Panel("loss (nats, or squared error)", _line),)
    title = "The loss on the straight line through the weights"
    return draw_panels(title, panels, arms, theme, across="place on the line")


def _line(axes: Axes, readings: Sequence[Reading], theme: Theme) -> None:
    if not readings:
        return
    arrays, scalars = readings[-1].arrays, readings[-1].scalars
    losses = [loss if isfinite(loss) else nan for loss in arrays["loss"]]
    for alpha in (0, 1):
        axes.axvline(alpha, color=theme.faint, linestyle=":", linewidth=1)
    axes.plot(arrays["alpha"], losses, ".-", color=theme.main, linewidth=1, markersize=4, label="loss")
    if {"loss_start", "loss_end"} <= scalars.keys():
        between = [alpha for alpha in arrays["alpha"] if 0 <= alpha <= 1]
        straight = [(1 - alpha) * scalars["loss_start"] + alpha * scalars["loss_end"] for alpha in between]
        said = f": barrier {scalars['barrier']:.3g}" if "barrier" in scalars else ""
        label = f"linear between the ends{said}"
        axes.plot(between, straight, color=theme.contrast, linestyle="--", linewidth=1, label=label)
    axes.legend(loc="best", frameon=True, framealpha=0.8, fontsize="x-small")
    # Not of the sheet: trainings may come from different jobs.
    axes.set_xlabel(f"place on the line ({_ends(readings[-1])})")


def _ends(reading: Reading) -> str:
    """What stands at 0 and at 1. Of a job's id the end, where ids differ; the whole stands below the title."""
    job = reading.facts.get("from", "").removeprefix("last weights of job ")
    if not job:
        return "0: initial weights, 1: last"
    return f"0: job {job if len(job) <= SHORT else '...' + job[-SHORT:]}, 1: this one"
