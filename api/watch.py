"""Progress of jobs, shown live: a bar for each on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

from api.client import Client
from api.views import EventView, JobView
from worker.states import State

QUIET_S = 10.0
"""Between two lines about the same job in the same state, where there is no terminal."""

STYLES = {
    State.SUCCEEDED: "green",
    State.DIVERGED: "yellow",
    State.FAILED: "red",
    State.CANCELLED: "yellow",
    State.RUNNING: "cyan",
}


@dataclass(frozen=True, slots=True)
class Glimpse:
    """What a bar shows of a job."""

    name: str
    state: State
    step: int
    steps: int
    steps_per_s: float | None
    eta_s: float | None
    metrics: Mapping[str, float]

    @classmethod
    def of(cls, job: JobView) -> Self:
        """A glimpse of a job as it stands."""
        at = job.progress
        return cls(job.name, job.state, at.step, at.steps, at.steps_per_s, at.eta_s, job.metrics)

    @property
    def words(self) -> str:
        """The last training loss and test accuracy."""
        shown = {"loss": "train/loss", "test": "test/accuracy"}
        return " ".join(f"{name} {self.metrics[key]:.3f}" for name, key in shown.items() if key in self.metrics)

    @property
    def pace(self) -> str:
        """How fast it goes and how long it will take, or in which state it is."""
        if self.state is not State.RUNNING or not self.steps_per_s:
            return self.state.value
        return f"{self.steps_per_s:.3g}/s" + (f" {_duration(self.eta_s)} left" if self.eta_s else "")


class Bars(AbstractContextManager["Bars"]):
    """The progress of some jobs. Show glimpses of each as they come.

    Args:
        console: Where to; what is not a terminal gets lines.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tasks: dict[str, TaskID] = {}
        self._said: dict[str, tuple[State, float]] = {}
        # No thread of its own: it is drawn when something is shown.
        self._progress = Progress(
            TextColumn("{task.description}", table_column=Column(no_wrap=True)),
            BarColumn(bar_width=20),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[words]}"),
            TextColumn("[{task.fields[style]}]{task.fields[pace]}"),
            console=console,
            auto_refresh=False,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def show(self, job_id: str, glimpse: Glimpse) -> None:
        """Show how a job stands."""
        if not self._console.is_terminal:
            self._say(job_id, glimpse)
            return
        if job_id not in self._tasks:
            self._tasks[job_id] = self._progress.add_task(glimpse.name, words="", pace="", style="default")
        self._progress.update(
            self._tasks[job_id],
            completed=glimpse.step,
            total=glimpse.steps,
            words=glimpse.words,
            pace=glimpse.pace,
            style=STYLES.get(glimpse.state, "default"),
        )
        self._progress.refresh()

    def _say(self, job_id: str, glimpse: Glimpse) -> None:
        state, at = self._said.get(job_id, (None, 0.0))
        if state is glimpse.state and (state is not State.RUNNING or time.monotonic() - at < QUIET_S):
            return
        self._said[job_id] = (glimpse.state, time.monotonic())
        words = (f"{glimpse.name}: {glimpse.pace}", f"step {glimpse.step}/{glimpse.steps}", glimpse.words)
        self._console.print("  ".join(word for word in words if word), markup=False, highlight=False, soft_wrap=True)


def watch(client: Client, job: JobView, console: Console) -> JobView:
    """Show the progress of a job until it has ended, and then how it ended.

    Returns:
        The job as it ended.
    """
    if job.waits is not None:
        console.print(f"The job {job.waits.detail}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    glimpse = Glimpse.of(job)
    with Bars(console) as bars:
        bars.show(job.id, glimpse)
        for event in client.events(job.id):
            if isinstance(event, EventView):
                job = client.job(job.id)
                glimpse = Glimpse.of(job)
            else:
                glimpse = Glimpse(
                    job.name, event.state, event.step, event.steps, event.steps_per_s, event.eta_s, event.metrics
                )
            bars.show(job.id, glimpse)
    job = client.job(job.id)
    console.print(describe(job), markup=False, highlight=False, soft_wrap=True)
    return job


def describe(job: JobView) -> str:
    """How a job stands, in a few lines."""
    lines = [f"{job.name}: {job.state}" + (f", {job.reason.detail or job.reason.code}" if job.reason else "")]
    curves = sorted(key for key in job.metrics if key.startswith(("train/", "test/")))
    lines += [f"  {key} {job.metrics[key]:.6g}" for key in curves]
    if len(job.attempts) > 1:
        lines.append(f"  {len(job.attempts)} attempts")
    if job.links.mlflow:
        lines.append(f"  {job.links.mlflow}")
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
