"""How a comparison of arms looks on the terminal: a table, and the links to its runs in MLflow."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from rich.table import Table

from api.views import JobView
from worker.links import charts_link, compare_link
from worker.report.comparison import MEASURES, Row

RUN = re.compile(r"(?P<mlflow>.*)/#/experiments/(?P<experiment>[^/]+)/runs/(?P<run>[^/?]+)")


def comparison_table(rows: Sequence[Row]) -> Table:
    """A line for each arm, a column for each measure that is something other than zero for any of them."""
    said = [
        index
        for index in range(len(MEASURES))
        if any(cell and cell.mean for cell in (row.cells[index] for row in rows))
    ]
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("arm", no_wrap=True, vertical="bottom")
    for index in said:
        table.add_column(MEASURES[index].heading, justify="right", min_width=11)
    for row in rows:
        table.add_row(row.arm, *("-" if row.cells[index] is None else str(row.cells[index]) for index in said))
    return table


def mlflow_lines(jobs: Sequence[JobView], names: Mapping[str, str], label: str, value: str) -> list[str]:
    """The links of jobs that share a label: all of their curves, all of them compared, and each under its name."""
    found = [RUN.match(job.links.mlflow) for job in jobs if job.links.mlflow]
    runs = [match for match in found if match is not None]
    if not runs:
        return ["MLflow has no runs yet; they appear when it answers."]
    mlflow, experiment = runs[0]["mlflow"], runs[0]["experiment"]
    search = f'tags.`{label}` = "{value}"'
    return [
        f"Curves:   {charts_link(mlflow, experiment, search=search)}",
        f"Compared: {compare_link(mlflow, experiment, [run['run'] for run in runs])}",
        *(f"  {names[job.id]}: {job.links.mlflow}" for job in jobs),
    ]
