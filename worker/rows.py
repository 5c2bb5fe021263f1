"""From the order book's rows to its views."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row

from normcore.spec import JobSpec
from worker.states import Desired, State
from worker.views import Attempt, CheckpointRow, Job, JobEvent, Reason


def job_of(row: Row[Any]) -> Job:
    """A job from a row of `tables.jobs`."""
    spec = JobSpec.model_validate_json(row.spec)
    return Job(
        id=row.id,
        name=row.name,
        state=State(row.state),
        desired=Desired(row.desired),
        spec=spec,
        labels=spec.labels,
        priority=row.priority,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        progress_step=row.progress_step,
        num_steps=row.num_steps,
        epoch=row.epoch,
        steps_per_s=row.steps_per_s,
        last_metrics=row.last_metrics,
        attempt=row.attempt,
        infra_retries=row.infra_retries,
        reason=_reason_of(row),
        mlflow_run_id=row.mlflow_run_id,
        mlflow_experiment_id=row.mlflow_experiment_id,
        study_id=row.study_id,
        dispatch_seq=row.dispatch_seq,
    )


def attempt_of(row: Row[Any]) -> Attempt:
    """An attempt from a row of `tables.attempts`."""
    return Attempt(
        n=row.n,
        worker=row.worker,
        started_at=row.started_at,
        ended_at=row.ended_at,
        outcome=row.outcome,
        reason=_reason_of(row),
        resumed_from=row.resumed_from,
        last_step=row.last_step,
        resume_verified=row.resume_verified,
    )


def checkpoint_of(row: Row[Any]) -> CheckpointRow:
    """A checkpoint from a row of `tables.checkpoints`."""
    return CheckpointRow(
        step=row.step,
        attempt=row.attempt,
        kind=row.kind,
        sha256=row.sha256,
        bytes=row.bytes,
        path=row.path,
        created_at=row.created_at,
        best=row.best,
    )


def event_of(row: Row[Any]) -> JobEvent:
    """An event from a row of `tables.job_events`."""
    return JobEvent(job_id=row.job_id, seq=row.seq, at=row.at, type=row.type, state=State(row.state), data=row.data)


def _reason_of(row: Row[Any]) -> Reason | None:
    return None if row.reason_code is None else Reason(row.reason_code, row.reason_detail or "")
