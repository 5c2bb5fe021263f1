"""What a conversion did, layer by layer."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from torch import nn

from normcore.surgery.table import table
from normcore.surgery.tree import Exchange, put_back


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one norm, or of something that looked like one."""

    path: str
    was: str
    became: str
    """Empty where it stayed."""
    how: Literal["exact", "matched", "carried", "kept"]
    """`exact`: the same function in evaluation, by mathematics; `matched`: another function, whose outputs have the
    mean and variance per channel that the original's have on the calibration batch; `carried`: another function, with
    gamma and beta taken over where there are any; `kept`: not converted."""
    preserved: tuple[str, ...] = ()
    """Parameters and buffers that the new norm took over; in a matched one they were only the start."""
    error: float | None = None
    """On the calibration batch, where there was one: largest difference between the new and the old layer's output on
    the old layer's input, over the largest output."""
    why: str = ""
    """Why it stayed, or what is to be known."""


@dataclass(frozen=True)
class Conversion:
    """A model with other norms, and the account of it; `print` shows it as a table."""

    model: nn.Module
    """The converted model; the original is untouched."""
    rows: tuple[Row, ...]
    rewritten: tuple[str, ...]
    """Modules whose forward is now a recording of it, because a relu had to go from one of its call sites; their class
    is a subclass of what it was. Models with such modules can be copied, compiled and exported; to keep them, keep the
    state dict, since their class stands in no file."""
    error: float | None
    """On the calibration batch, where there was one: largest difference in the model's outputs, over the largest."""
    exchanges: tuple[Exchange, ...]

    @property
    def exact(self) -> bool:
        """Whether the model computes what the original did, by mathematics: nothing was converted inexactly."""
        return all(row.how in {"exact", "kept"} for row in self.rows)

    def revert(self) -> nn.Module:
        """The model with every original module back in its place; it is changed in place, and returned.

        Original norms come back with the parameters and statistics that they had; whatever else was trained in between
        stays as it is now.
        """
        return put_back(self.model, self.exchanges)

    def __str__(self) -> str:
        head = ("path", "was", "became", "how", "preserved", "error", "why")
        rows = [
            (
                row.path or "(the model)",
                row.was,
                row.became,
                row.how,
                ", ".join(row.preserved),
                "" if row.error is None else f"{row.error:.1e}",
                row.why,
            )
            for row in self.rows
        ]
        counts = Counter(row.how for row in self.rows)
        facts = [f"{count} {how}" for how, count in counts.items()] or ["no norm found"]
        if self.rewritten:
            facts.append(f"forward rewritten in {', '.join(path or 'the model' for path in self.rewritten)}")
        if self.error is not None:
            facts.append(f"outputs differ by {self.error:.1e} on the calibration batch")
        return f"{table(head, rows)}\n{'; '.join(facts)}"
