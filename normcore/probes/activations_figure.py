"""The figure of the activations probe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from normcore.probes.sheet import LIGHT, Arms, Panel, Theme, draw_panels, layer_curves
from normcore.records import Reading

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(arms: Arms, theme: Theme = LIGHT) -> bytes:
    """Five panels over the steps, as PNG: percentiles of the first and the last layer; variance, saturated and dead
    shares, effective rank and correlation, a line per layer.
    """
    panels = (
        Panel("input of the non-linearity\n(15th, 50th, 85th percentile)", _percentiles, scale="linear"),
        Panel("variance of the input", partial(_lines, name="var", legend=True)),
        Panel("saturated (share of values)\ndotted: dead channels", _shares, scale="linear"),
        Panel("effective rank\n(share of channels)", partial(_lines, name="rank_share"), scale="linear"),
        Panel("mean |correlation|\nof channels", partial(_lines, name="correlation"), scale="linear"),
    )
    shared = {name: [_with_rank_share(reading) for reading in readings] for name, readings in arms.items()}
    return draw_panels("What non-linearities are given, layer by layer", panels, shared, theme)


def _with_rank_share(reading: Reading) -> Reading:
    pairs = zip(reading.arrays["effective_rank"], reading.arrays["channels"], strict=True)
    share = tuple(rank / max(1.0, channels) for rank, channels in pairs)
    return replace(reading, arrays={**reading.arrays, "rank_share": share})


def _percentiles(axes: Axes, readings: Sequence[Reading], theme: Theme) -> None:
    count = len(readings[0].layers) if readings else 0
    steps = [reading.step for reading in readings]
    ends = ((0, theme.main, "-", "first layer"), (count - 1, theme.contrast, "--", "last layer"))[: min(count, 2)]
    for index, colour, style, label in ends:
        low, middle, high = ([reading.arrays[name][index] for reading in readings] for name in ("p15", "p50", "p85"))
        axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
        for edge in (low, high):
            axes.plot(steps, edge, color=colour, linestyle=style, linewidth=0.8)
        axes.plot(steps, middle, color=colour, linestyle=style, marker=".", linewidth=1.5, markersize=3, label=label)
    if count:
        # Room for the legend above the bands.
        axes.margins(y=0.25)
        axes.legend(loc="upper center", ncols=2, frameon=False, fontsize="small")


def _lines(axes: Axes, readings: Sequence[Reading], theme: Theme, *, name: str, legend: bool = False) -> None:
    layer_curves(axes, readings, name, theme, legend=legend)


def _shares(axes: Axes, readings: Sequence[Reading], theme: Theme) -> None:
    layer_curves(axes, readings, "saturated", theme)
    steps, count = [reading.step for reading in readings], len(readings[0].layers) if readings else 0
    for index in range(count):
        dead = [reading.arrays["dead"][index] for reading in readings]
        axes.plot(steps, dead, color=theme.layer(index, count), linestyle=":", linewidth=1.5)
    axes.set_ylim(-0.03, 1.03)
