"""Certificates as tables for people."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from normcore.certificate.certificate import Row, number

STYLES = {"pass": "green", "fail": "bold red", "not claimed": "dim", "skipped": "dim"}


def certificate_table(rows: Iterable[Row]) -> Table:
    """A row for each property: what is claimed, what was seen, how far off, and the verdict."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("PROPERTY", "CLAIMED", "OBSERVED"):
        table.add_column(heading, overflow="fold")
    for heading in ("ERROR", "TOLERANCE"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("VERDICT", no_wrap=True)
    for row in rows:
        table.add_row(
            row.property,
            row.claimed,
            Text(row.observed or row.reason, style="" if row.observed else "dim"),
            number(row.error),
            number(row.tolerance),
            Text(row.verdict, style=STYLES[row.verdict]),
        )
    return table
