"""The sheet that probes draw on: panels below each other, trainings beside each other, in light or dark."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from math import isfinite
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from normcore.records import Reading

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Arms = Mapping[str, Sequence[Reading]]
"""Readings of one kind of probe by the name of their training; the name of a single one may be empty."""

STEPS = "step (updates)"
"""Label of the horizontal axis that most sheets have, whose ticks are whole numbers."""

LOG_FROM = 50.0
"""Ratio of a panel's largest to its smallest value from which its axis is logarithmic."""


@dataclass(frozen=True, slots=True)
class Theme:
    """Colours that people with any kind of colour vision can tell apart (Okabe and Ito), on a ground."""

    ground: str
    ink: str
    faint: str
    main: str
    """Of what is measured."""
    contrast: str
    """Of what it is compared with."""
    third: str
    scale: str
    """A colour map for layers, from the first to the last."""
    span: tuple[float, float]
    """The part of that map which can be seen on the ground."""

    def layer(self, index: int, count: int) -> tuple[float, float, float, float]:
        """The colour of a layer, by its depth."""
        from matplotlib import colormaps

        low, high = self.span
        place = low + (high - low) * index / max(1, count - 1)
        colour: tuple[float, float, float, float] = colormaps[self.scale](place)
        return colour


LIGHT = Theme("#FFFFFF", "#000000", "#666666", "#0072B2", "#D55E00", "#009E73", "viridis", (0.0, 0.9))
DARK = Theme("#14171A", "#E8E8E8", "#9A9A9A", "#56B4E9", "#E69F00", "#009E73", "viridis", (0.2, 1.0))
THEMES: dict[Literal["light", "dark"], Theme] = {"light": LIGHT, "dark": DARK}

Paint = Callable[["Axes", Sequence[Reading], Theme], None]


@dataclass(frozen=True, slots=True)
class Panel:
    """One row of a sheet."""

    label: str
    """Of the vertical axis, with the unit."""
    paint: Paint
    """Draws the readings of one training."""
    scale: Literal["auto", "linear", "symlog"] = "auto"
    """auto: logarithmic where all values are above zero and the largest is 50 times the smallest."""
    across: str = ""
    """Label of a horizontal axis of its own, with the unit, where that is not the sheet's."""


def draw_panels(title: str, panels: Sequence[Panel], arms: Arms, theme: Theme = LIGHT, *, across: str = STEPS) -> bytes:
    """A sheet as PNG: a row per panel, a column per training; the panels of a row share their vertical axis.

    Where facts of the readings say how they were taken (`bn_mode`, a precision), they stand below the title.

    Args:
        title: Of the whole.
        panels: From top to bottom.
        arms: From left to right.
        theme: Colours.
        across: Label of the horizontal axis that the panels share, but those with one of their own.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    # Nothing is a sheet too, with empty panels.
    arms = arms or {"": []}
    rows, columns = len(panels), len(arms)
    height, width = 0.9 + 2.2 * rows, 1.0 + 6.0 * columns if columns == 1 else 1.0 + 3.6 * columns
    with rc_context(colours(theme)):
        # Not pyplot: it keeps global state and would open a window where there is a screen.
        figure = Figure(figsize=(width, height), dpi=120)
        # Fixed margins: working them out (layout="constrained") takes as long as all the rest.
        margins = {"left": 1.0 / width, "right": 1 - 0.2 / width, "bottom": 0.55 / height, "top": 1 - 0.75 / height}
        spaces = SPACES if all(panel.across == "" for panel in panels) else SPACES | ROOM_FOR_LABELS
        grid = figure.subplots(rows, columns, sharey="row", squeeze=False, gridspec_kw=margins | spaces)
        for column in grid.T:
            _across(column, panels, across, log=across == STEPS and _is_log_spaced(arms))
        for panel, row in zip(panels, grid, strict=True):
            for axes, readings in zip(row, arms.values(), strict=True):
                panel.paint(axes, readings, theme)
                axes.grid(visible=True, alpha=0.3)
            row[0].set_ylabel(panel.label)
            row[0].yaxis.set_label_coords(-0.75 / (width / columns), 0.5)
            _scale(list(row), panel)
        for axes, name in zip(grid[0], arms, strict=True):
            axes.set_title(name, fontsize="medium")
        figure.suptitle(title, y=1 - 0.18 / height)
        if said := facts_of(arms):
            figure.text(0.5, 1 - 0.42 / height, said, ha="center", va="center", fontsize="small", color=theme.faint)
        png = BytesIO()
        figure.savefig(png, format="png")
    return png.getvalue()


SPACES = {"hspace": 0.08, "wspace": 0.06}
ROOM_FOR_LABELS = {"hspace": 0.32}
"""Between panels of which some have a horizontal axis of their own."""


def curve(
    axes: Axes, readings: Sequence[Reading], scalar: str, colour: str, *, label: str | None = None, style: str = "-"
) -> None:
    """A scalar over the steps, of those readings that have it."""
    seen = [(reading.step, reading.scalars[scalar]) for reading in readings if scalar in reading.scalars]
    steps, values = zip(*seen, strict=True) if seen else ((), ())
    axes.plot(steps, values, color=colour, linestyle=style, marker=".", linewidth=1, markersize=3, label=label)


def layer_curves(axes: Axes, readings: Sequence[Reading], array: str, theme: Theme, *, legend: bool = False) -> None:
    """An array per layer over the steps: a line per layer from the first colour of the scale to the last.

    Values that are not finite are gaps.
    """
    steps = [reading.step for reading in readings]
    rows = [reading.arrays[array] for reading in readings]
    count = len(rows[0]) if rows else 0
    for index in range(count):
        name = readings[0].layers[index] if index < len(readings[0].layers) else ""
        label = {0: f"first layer {name}", count - 1: f"last layer {name}"}.get(index)
        axes.plot(
            steps,
            [row[index] for row in rows],
            color=theme.layer(index, count),
            marker=".",
            linewidth=1,
            markersize=3,
            label=None if label is None else label.rstrip(),
        )
    if legend and count:
        # Many lines leave no place free of them.
        axes.legend(loc="best", frameon=True, framealpha=0.8, edgecolor="none", fontsize="small")


def say(axes: Axes, readings: Sequence[Reading], words: str, theme: Theme) -> None:
    """Why a panel is empty, over the steps of its readings; of no readings nothing is said."""
    if readings:
        axes.update_datalim([(each.step, 0.0) for each in readings], updatey=False)
        axes.autoscale_view(scaley=False)
        axes.text(0.5, 0.5, words, ha="center", va="center", color=theme.faint, transform=axes.transAxes)


def _is_log_spaced(arms: Arms) -> bool:
    """Whether most readings were taken in the first tenth of the steps: on a linear axis they would stand in a heap."""
    steps = [reading.step for readings in arms.values() for reading in readings]
    return 2 * sum(10 * step <= max(steps) for step in steps) > len(steps) and min(steps) > 0


def _across(column: Iterable[Axes], panels: Sequence[Panel], across: str, *, log: bool) -> None:
    """The horizontal axes of a column: one for all panels that have none of their own, labelled below the last."""
    from matplotlib.ticker import MaxNLocator

    shared = []
    for axes, panel in zip(column, panels, strict=True):
        if panel.across:
            axes.set_xlabel(panel.across)
        else:
            shared.append(axes)
    for axes in shared[:-1]:
        axes.sharex(shared[-1])
        axes.tick_params(labelbottom=False)
    for axes in shared[-1:]:
        axes.set_xlabel(across)
        if log:
            axes.set_xscale("log")
        elif across == STEPS:
            axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True, min_n_ticks=1))


def _scale(row: list[Axes], panel: Panel) -> None:
    if panel.scale == "symlog":
        row[0].set_yscale("symlog")
    if panel.scale != "auto":
        return
    values = [
        value
        for axes in row
        for line in axes.lines
        # Lines across the whole panel are not of the readings.
        if line.get_transform() == axes.transData
        for value in np.asarray(line.get_ydata(), dtype=float).tolist()
        if isfinite(value)
    ]
    if values and min(values) > 0 and max(values) > LOG_FROM * min(values):
        row[0].set_yscale("log")


def colours(theme: Theme) -> Any:
    """What matplotlib must be told of a theme."""
    inked = ("text.color", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color", "axes.edgecolor")
    grounds = ("figure.facecolor", "axes.facecolor", "savefig.facecolor")
    return dict.fromkeys(inked, theme.ink) | dict.fromkeys(grounds, theme.ground) | {"grid.color": theme.faint}


def facts_of(arms: Arms) -> str:
    """What must be known to read the numbers, in a line."""
    facts = {f"{name}: {said}" for readings in arms.values() for each in readings for name, said in each.facts.items()}
    return "; ".join(sorted(facts))
