"""What was found out about a layer."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from textwrap import shorten
from typing import Literal

Verdict = Literal["pass", "fail", "not claimed", "skipped"]


@dataclass(frozen=True, slots=True)
class Row:
    """One property of the layer: what is claimed of it, and what was seen."""

    property: str
    """Its name, the same for every layer."""
    claimed: str
    """What the claims say; empty where they say nothing."""
    observed: str
    """What was seen; empty where it was not tried."""
    error: float | None
    """The largest deviation, where it is a number."""
    tolerance: float | None
    """The largest deviation that passes."""
    verdict: Verdict
    """`fail` only where something is claimed and was refuted."""
    reason: str
    """Why it was skipped; empty otherwise."""
    seconds: float
    """How long the trial took."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """The properties of a layer, in the order in which they were tried.

    Example:
        >>> from torch import nn
        >>> from normcore.certificate.certify import certify
        >>> certificate = certify(nn.GroupNorm(2, 8), groups=["invariances"])
        >>> certificate.passed, certificate.row("shift invariance").observed
        (True, 'sample')
    """

    layer: str
    """The layer, as it prints itself."""
    shape: tuple[int, ...]
    """Of the inputs it was tried with."""
    rows: tuple[Row, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing that is claimed was refuted."""
        return not self.failures

    @property
    def failures(self) -> tuple[Row, ...]:
        """The rows in which a claim was refuted."""
        return tuple(row for row in self.rows if row.verdict == "fail")

    def row(self, name: str) -> Row:
        """The row of a property.

        Raises:
            KeyError: It was not among those to be tried.
        """
        for row in self.rows:
            if row.property == name:
                return row
        raise KeyError(f"no row {name!r}; there are {', '.join(row.property for row in self.rows)}")

    def table(self) -> str:
        """The rows as plain text, in columns that cut long observations short."""
        cells = [("property", "claimed", "observed", "error", "tolerance", "verdict")]
        cells += [
            (
                row.property,
                row.claimed,
                shorten(row.observed or row.reason, 60, placeholder=" ..."),
                number(row.error),
                number(row.tolerance),
                row.verdict,
            )
            for row in self.rows
        ]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
        return "\n".join([f"{self.layer} on {self.shape}", *lines, self.summary()])

    def summary(self) -> str:
        """How many rows have which verdict, in one line."""
        verdicts: list[str] = [row.verdict for row in self.rows]
        words = {"passed": "pass", "failed": "fail", "skipped": "skipped", "not claimed": "not claimed"}
        return ", ".join(f"{verdicts.count(verdict)} {word}" for word, verdict in words.items())

    def to_json(self) -> str:
        """Everything in it as one JSON object; `passed` stands beside the rows, and infinite errors are null."""
        seen = asdict(self)
        for row in seen["rows"]:
            if row["error"] is not None and not math.isfinite(row["error"]):
                row["error"] = None
        return json.dumps({"passed": self.passed, **seen}, allow_nan=False)


def number(value: float | None) -> str:
    """A deviation in two digits; nothing where there is none.

    Example:
        >>> number(0.000123), number(None)
        ('0.00012', '')
    """
    return "" if value is None else f"{value:.2g}"
