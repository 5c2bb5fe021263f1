"""The figure of the learning rate range."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan
from typing import TYPE_CHECKING

from normcore.probes.sheet import LIGHT, Arms, Panel, Theme, draw_panels
from normcore.records import Reading

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HIGHEST = 2.0
"""Multiple of the initial loss from which on a loss is not drawn: what diverges would flatten all the rest."""


def draw(arms: Arms, theme: Theme = LIGHT) -> bytes:
    """The loss over the lr of the sweep, as PNG, with the usable ones shaded.

    Losses above twice the initial one are not drawn. Of several readings the last is.
    """
    panels = (Panel("loss, up to twice the initial\n(nats, or squared error)", _sweep),)
    return draw_panels("Usable learning rates", panels, arms, theme, across="learning rate of the update")


def _sweep(axes: Axes, readings: Sequence[Reading], theme: Theme) -> None:
    axes.set_xscale("log")
    if not readings:
        return
    arrays, scalars = readings[-1].arrays, readings[-1].scalars
    initial = scalars.get("loss_initial", nan)
    shown = {name: [y if y <= HIGHEST * initial else nan for y in arrays[name]] for name in ("loss", "smoothed")}
    axes.plot(arrays["lr"], shown["loss"], ".", color=theme.faint, markersize=3)
    axes.plot(arrays["lr"], shown["smoothed"], color=theme.main, linewidth=1.5)
    axes.axhline(initial, color=theme.faint, linestyle=":", linewidth=1, label="at the initial weights")
    if "lr_usable_min" in scalars:
        low, high, width = (scalars[f"lr_usable_{name}"] for name in ("min", "max", "decades"))
        more = " or more" if "open_end" in scalars else ""
        usable = f"usable: {low:.2g} to {high:.2g}{more}, {width:.1f} decades"
        axes.axvspan(low, high, color=theme.third, alpha=0.25, linewidth=0, label=usable)
        steepest = scalars["lr_steepest"]
        axes.axvline(
            steepest, color=theme.contrast, linestyle="--", linewidth=1, label=f"falls fastest at {steepest:.2g}"
        )
    else:
        axes.plot([], [], " ", label="no usable lr")
    # Room beside the first and the last, so that the labels of neighbouring panels do not meet.
    axes.set_xlim(arrays["lr"][0] / 1.5, arrays["lr"][-1] * 1.5)
    axes.legend(loc="best", frameon=True, framealpha=0.8, fontsize="x-small")
