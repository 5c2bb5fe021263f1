"""The figure of the landscape probe."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING

from normcore.records import Reading

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Blue and vermillion of Okabe and Ito, which people with any kind of colour vision can tell apart.
BAND, EDGE = "#0072B2", "#D55E00"

MARGINS = {"left": 0.12, "right": 0.97, "bottom": 0.07, "top": 0.94, "hspace": 0.08}

LOG_FROM = 50.0
"""Ratio of a panel's largest to its smallest value from which its axis is logarithmic."""


def draw(readings: Sequence[Reading]) -> bytes:
    """Three panels over the steps, as PNG: loss band, gradient change band, effective beta times lr with a line at 2.

    Steps of which some points were not finite are marked along the top of the first panel.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    # Not pyplot: it keeps global state and would open a window where there is a screen.
    figure = Figure(figsize=(7.0, 7.5), dpi=120)
    # Fixed margins: working them out (layout="constrained") takes as long as all the rest.
    loss, change, beta = figure.subplots(3, 1, sharex=True, gridspec_kw=MARGINS)
    _band(loss, readings, "loss", "loss along the gradient (nats)")
    _band(change, readings, "gradient_change", "gradient change (L2 norm)")
    _curve(beta, readings)
    blown = [reading.step for reading in readings if "nonfinite_points" in reading.scalars]
    if blown:
        loss.plot(
            blown, [0.97] * len(blown), "v", color=EDGE, transform=loss.get_xaxis_transform(), label="points not finite"
        )
        loss.legend(loc="lower left", frameon=False)
    beta.set_xlabel("step (updates)")
    figure.suptitle("Smoothness along the gradient", y=0.98)
    png = BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


def _band(axes: Axes, readings: Sequence[Reading], name: str, label: str) -> None:
    seen = [reading for reading in readings if f"{name}_max" in reading.scalars]
    steps = [reading.step for reading in seen]
    low, high = ([reading.scalars[f"{name}_{end}"] for reading in seen] for end in ("min", "max"))
    axes.fill_between(steps, low, high, color=BAND, alpha=0.3, linewidth=0)
    for edge in (low, high):
        axes.plot(steps, edge, ".-", color=BAND, linewidth=1, markersize=3)
    axes.set_ylabel(label)
    _scale(axes, [*low, *high])


def _curve(axes: Axes, readings: Sequence[Reading]) -> None:
    seen = [reading for reading in readings if "effective_beta_times_lr" in reading.scalars]
    betas = [reading.scalars["effective_beta_times_lr"] for reading in seen]
    axes.plot([reading.step for reading in seen], betas, ".-", color=BAND, linewidth=1, markersize=3)
    axes.axhline(2.0, color=EDGE, linestyle="--", linewidth=1, label="2: edge of stability")
    axes.set_ylabel("effective beta x lr (no unit)")
    axes.legend(loc="upper right", frameon=False)
    _scale(axes, [*betas, 2.0])


def _scale(axes: Axes, values: list[float]) -> None:
    axes.grid(visible=True, alpha=0.3)
    axes.yaxis.set_label_coords(-0.09, 0.5)
    positive = [value for value in values if value > 0]
    if len(positive) == len(values) > 0 and max(values) > LOG_FROM * min(values):
        axes.set_yscale("log")
