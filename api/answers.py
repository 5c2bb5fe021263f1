"""From the order book's rows to the shapes of the API."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from api.views import (
    AttemptView,
    CheckpointView,
    EventView,
    JobView,
    LinksView,
    ProgressEventView,
    ProgressView,
    ReasonView,
)
from worker.book import Attempt, CheckpointRow, Job, JobEvent, Reason, State


def job_view(job: Job, attempts: Iterable[Attempt], mlflow: str | None, obstacle: Reason | None = None) -> JobView:
    """A job as it stands.

    Args:
        job: As the order book has it.
        attempts: From the first.
        mlflow: The address of its run's page, where there is a run.
        obstacle: Why it waits, where no worker that is alive could run it.
    """
    here = f"/v1/jobs/{job.id}"
    return JobView(
        id=job.id,
        state=job.state,
        desired=job.desired,
        name=job.name,
        spec=job.spec,
        progress=ProgressView(
            step=job.progress_step,
            steps=job.num_steps,
            epoch=job.epoch,
            steps_per_s=job.steps_per_s,
            eta_s=_eta_s(job),
        ),
        metrics=dict(job.last_metrics),
        attempts=[attempt_view(attempt) for attempt in attempts],
        study_id=job.study_id,
        created_at=_utc(job.created_at),
        started_at=_utc_or_none(job.started_at),
        finished_at=_utc_or_none(job.finished_at),
        reason=_reason(job.reason),
        waits=_reason(obstacle),
        links=LinksView(
            self=here,
            events=f"{here}/events",
            metrics=f"{here}/metrics",
            checkpoints=f"{here}/checkpoints",
            mlflow=mlflow,
        ),
    )


def attempt_view(attempt: Attempt) -> AttemptView:
    """One try at a job."""
    return AttemptView(
        n=attempt.n,
        worker=attempt.worker,
        started_at=_utc(attempt.started_at),
        ended_at=_utc_or_none(attempt.ended_at),
        outcome=attempt.outcome,
        reason=_reason(attempt.reason),
        resumed_from=attempt.resumed_from,
        last_step=attempt.last_step,
        resume_verified=attempt.resume_verified,
    )


def checkpoint_views(rows: list[CheckpointRow]) -> list[CheckpointView]:
    """Committed checkpoints; the newest of those that were the best so far is the best."""
    best = max((row.step for row in rows if row.best), default=None)
    return [
        CheckpointView(step=row.step, sha256=row.sha256, bytes=row.bytes, kind=row.kind, best=row.step == best)
        for row in rows
    ]


def event_view(event: JobEvent) -> EventView:
    """Something that happened to a job."""
    return EventView(seq=event.seq, at=_utc(event.at), type=event.type, state=event.state, data=dict(event.data))


def progress_event_view(job: Job) -> ProgressEventView:
    """How a running job stands."""
    return ProgressEventView(
        state=job.state,
        step=job.progress_step,
        steps=job.num_steps,
        steps_per_s=job.steps_per_s,
        eta_s=_eta_s(job),
        metrics=dict(job.last_metrics),
    )


def _eta_s(job: Job) -> float | None:
    if job.state is not State.RUNNING or not job.steps_per_s:
        return None
    return (job.num_steps - job.progress_step) / job.steps_per_s


def _reason(reason: Reason | None) -> ReasonView | None:
    return None if reason is None else ReasonView(code=reason.code, detail=reason.detail)


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _utc_or_none(seconds: float | None) -> datetime | None:
    return None if seconds is None else _utc(seconds)
