"""The figure of a smoothness study: how the arms' landscape probes compare (Santurkar et al. 2018, figure 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import cycle
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

from worker.report.comparison import Outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette, for any kind of colour vision; the dashes tell the arms apart without colour.
STYLES = (("#000000", "-"), ("#0072B2", "--"), ("#D55E00", ":"), ("#009E73", "-."), ("#CC79A7", (0, (5, 1, 1, 1))))
EDGE_OF_STABILITY = 2.0
LOG_FROM = 50.0
"""Ratio of a panel's largest to its smallest value from which its axis is logarithmic."""

Curve = Mapping[int, float]
"""The value at each step."""


def draw(outcomes: Sequence[Outcome], title: str) -> bytes:
    """Three panels over the steps, as PNG: the arms' bands of loss and of gradient change, and their beta times lr.

    A band lies between the means, over the seeds, of its lower and of its upper end, so that it shows how much the loss
    varies along the gradient and not how much the seeds vary.

    Args:
        outcomes: Jobs whose curves hold what the landscape probe measures; arms keep the order they first appear in.
        title: What is compared, and on what.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 9.0), dpi=150, layout="constrained")
    loss, change, beta = figure.subplots(3, 1, sharex=True)
    arms = {outcome.arm: [other for other in outcomes if other.arm == outcome.arm] for outcome in outcomes}
    for (arm, members), style in zip(arms.items(), cycle(STYLES), strict=False):
        _band(loss, members, "landscape/loss", style, f"{arm} ({len(members)} seeds)" if len(members) > 1 else arm)
        _band(change, members, "landscape/gradient_change", style, None)
        curve = _mean(members, "landscape/effective_beta_times_lr")
        beta.plot(list(curve), list(curve.values()), color=style[0], linestyle=style[1], linewidth=1.4)
    beta.axhline(EDGE_OF_STABILITY, color="0.4", linewidth=0.8)
    beta.annotate(
        "2: edge of stability",
        (1.0, EDGE_OF_STABILITY),
        xycoords=("axes fraction", "data"),
        xytext=(-4, 4),
        textcoords="offset points",
        ha="right",
        color="0.3",
        fontsize="small",
    )
    loss.set_ylabel("loss along the gradient (nats)")
    change.set_ylabel("gradient change along\nthe gradient (L2 norm)")
    beta.set_ylabel("effective beta x lr")
    beta.set_xlabel("step (optimizer updates)")
    for axes in (loss, change, beta):
        _scale(axes)
    figure.suptitle(title)
    figure.legend(*loss.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    png = BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


def _band(axes: Axes, members: Sequence[Outcome], name: str, style: tuple[str, object], label: str | None) -> None:
    low, high = _mean(members, f"{name}_min"), _mean(members, f"{name}_max")
    steps = [step for step in low if step in high]
    floor, ceiling = [low[step] for step in steps], [high[step] for step in steps]
    axes.fill_between(steps, floor, ceiling, color=style[0], alpha=0.2, linewidth=0)
    for edge, text in ((floor, None), (ceiling, label)):
        axes.plot(steps, edge, color=style[0], linestyle=style[1], linewidth=1.2, label=text)


def _mean(members: Sequence[Outcome], key: str) -> Curve:
    """The mean over the seeds at every step that any of them measured."""
    values: dict[int, list[float]] = {}
    for outcome in members:
        for point in outcome.curves.get(key, ()):
            values.setdefault(point.step, []).append(point.value)
    return {step: fmean(values[step]) for step in sorted(values)}


def _scale(axes: Axes) -> None:
    axes.grid(visible=True, alpha=0.3)
    values = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in axes.lines])
    if values.size and values.min() > 0 and values.max() > LOG_FROM * values.min():
        axes.set_yscale("log")
