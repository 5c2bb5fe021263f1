"""A list of jobs as a table for people."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from rich.table import Table
from rich.text import Text

from api.views import JobView
from api.watch import STYLES


def job_table(jobs: Iterable[JobView]) -> Table:
    """A row for each job: id, name, state, how far, last loss and accuracy, and how long ago it was ordered."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("ID", "NAME", "STATE"):
        table.add_column(heading, no_wrap=True)
    for heading in ("STEP", "train/loss", "test/accuracy", "AGE"):
        table.add_column(heading, justify="right", no_wrap=True)
    now = datetime.now(UTC)
    for job in jobs:
        table.add_row(
            job.id,
            Text(job.name),
            Text(job.state, style=STYLES.get(job.state, "")),
            f"{job.progress.step}/{job.progress.steps}",
            *(f"{job.metrics[key]:.4f}" if key in job.metrics else "" for key in ("train/loss", "test/accuracy")),
            age((now - job.created_at).total_seconds()),
        )
    return table


def age(seconds: float) -> str:
    """A time span in its largest unit.

    Example:
        >>> age(42), age(200), age(86400 * 3)
        ('42 s', '3 min', '3 d')
    """
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return f"{max(0, seconds):.0f} s"
