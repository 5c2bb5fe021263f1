"""The order book, seen by a worker: everything an attempt writes is guarded by its token.

A job's row is locked before anything else is written, so a token that was fenced meanwhile writes nothing at all.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, func, insert, select, update

from normcore.spec import JobSpec
from worker.clock import now
from worker.rows import checkpoint_of
from worker.states import ENDINGS, TERMINAL, Desired, Event, State, settle
from worker.tables import attempts, checkpoints, jobs, metrics
from worker.transitions import advance, touch
from worker.upsert import insert_into, insert_or_ignore
from worker.views import CheckpointRow, Claim, Lease, MetricPoint, Progress, Reason

MAX_BACKOFF_S = 300.0
VERIFIED = {"resume_verified": True, "resume_differs": False}
"""What remarks say of whether an attempt went on as its checkpoint foretold."""


def claim(connection: Connection, job_id: str, dispatch_seq: int, worker: str, *, ttl_s: float) -> Claim | None:
    """See `Book.claim`."""
    token = str(uuid.uuid4())
    row = advance(
        connection,
        Event.CLAIMED,
        jobs.c.id == job_id,
        jobs.c.dispatch_seq == dispatch_seq,
        jobs.c.desired == Desired.RUN.value,
        values={
            "attempt": jobs.c.attempt + 1,
            "lease_token": token,
            "lease_owner": worker,
            "lease_expires_at": now() + ttl_s,
            "started_at": func.coalesce(jobs.c.started_at, now()),
        },
        data={"worker": worker},
    )
    if row is None:
        return None
    kept = _history(connection, job_id)
    connection.execute(
        insert(attempts).values(
            job_id=job_id, n=row.attempt, worker=worker, started_at=now(), resumed_from=None if kept else 0
        )
    )
    return Claim(job_id, token, row.attempt, JobSpec.model_validate_json(row.spec), kept, row.mlflow_run_id)


def _history(connection: Connection, job_id: str) -> tuple[CheckpointRow, ...]:
    """The checkpoints that an attempt may go on from, newest first, also those that only MLflow still has.

    What an earlier attempt passed over is not among them: it was measured anew since then.
    """
    tries = connection.execute(
        select(attempts.c.n, attempts.c.resumed_from).where(
            attempts.c.job_id == job_id, attempts.c.resumed_from.is_not(None)
        )
    ).all()
    statement = select(checkpoints).where(checkpoints.c.job_id == job_id).order_by(checkpoints.c.step.desc())
    return tuple(
        checkpoint_of(row)
        for row in connection.execute(statement)
        if not any(later.n > row.attempt and later.resumed_from < row.step for later in tries)
    )


def _on_disk(connection: Connection, job_id: str) -> tuple[CheckpointRow, ...]:
    statement = (
        select(checkpoints)
        .where(checkpoints.c.job_id == job_id, checkpoints.c.path.is_not(None))
        .order_by(checkpoints.c.step.desc())
    )
    return tuple(checkpoint_of(row) for row in connection.execute(statement))


def renew(connection: Connection, token: str, progress: Progress | None, *, ttl_s: float) -> Lease | None:
    """See `Book.renew`."""
    row = connection.execute(
        update(jobs)
        .where(_held(token))
        .values(lease_expires_at=now() + ttl_s, **_columns(progress))
        .returning(jobs.c.desired, jobs.c.lease_expires_at)
    ).one_or_none()
    return None if row is None else Lease(Desired(row.desired), row.lease_expires_at)


def add_metrics(connection: Connection, token: str, points: Iterable[MetricPoint]) -> bool:
    """See `Book.add_metrics`."""
    job = _locked(connection, token)
    if job is None:
        return False
    rows = [{"job_id": job.id, **_finite(point)} for point in points]
    if rows:
        connection.execute(insert_or_ignore(connection, metrics, "job_id", "key", "step"), rows)
        newest = {**job.last_metrics, **{row["key"]: row["value"] for row in rows}}
        connection.execute(update(jobs).where(_held(token)).values(last_metrics=newest))
    return True


def _finite(point: MetricPoint) -> dict[str, Any]:
    if math.isfinite(point.value):
        return {"key": point.key, "step": point.step, "value": float(point.value)}
    return {"key": f"{point.key}_nonfinite", "step": point.step, "value": 1.0}


def commit_checkpoint(
    connection: Connection, token: str, *, step: int, path: str, sha256: str, size: int, kind: str, best: bool
) -> bool:
    """See `Book.commit_checkpoint`."""
    data = {"step": step, "sha256": sha256, "bytes": size, "kind": kind, "best": best}
    job = touch(connection, _held(token), values={}, kind="checkpoint", data=data)
    if job is None:
        return False
    columns = {"attempt": job.attempt, "kind": kind, "sha256": sha256, "bytes": size, "path": path}
    columns |= {"best": best, "created_at": now()}
    connection.execute(
        insert_into(connection, checkpoints)
        .values(job_id=job.id, step=step, **columns)
        .on_conflict_do_update(index_elements=["job_id", "step"], set_=columns)
    )
    return True


def retire_checkpoints(connection: Connection, token: str, keep: int) -> tuple[CheckpointRow, ...]:
    """See `Book.retire_checkpoints`."""
    job = _locked(connection, token)
    if job is None:
        return ()
    return _retire(connection, job.id, keep)


def retire_ended(connection: Connection, job_id: str) -> tuple[CheckpointRow, ...]:
    """See `Book.retire_ended`."""
    ended = select(jobs.c.id).where(jobs.c.id == job_id, jobs.c.state.in_([state.value for state in TERMINAL]))
    return () if connection.execute(ended).one_or_none() is None else _retire(connection, job_id, keep=1)


def _retire(connection: Connection, job_id: str, keep: int) -> tuple[CheckpointRow, ...]:
    """Give up all checkpoints on disk but the newest `keep`, the best and the last."""
    kept = _on_disk(connection, job_id)
    best = connection.scalar(
        select(func.max(checkpoints.c.step)).where(checkpoints.c.job_id == job_id, checkpoints.c.best)
    )
    old = tuple(row for row in kept[keep:] if row.step != best and row.kind != "last")
    _forget_paths(connection, job_id, checkpoints.c.step.in_([row.step for row in old]))
    return old


def _forget_paths(connection: Connection, job_id: str, which: ColumnElement[bool], **values: Any) -> None:
    connection.execute(update(checkpoints).where(checkpoints.c.job_id == job_id, which).values(path=None, **values))


def resumed(connection: Connection, token: str, step: int, passed_over: Sequence[str]) -> bool:
    """See `Book.resumed`."""
    data = {"step": step, "passed_over": list(passed_over)}
    job = touch(connection, _held(token), values={"progress_step": step}, kind="resumed_from", data=data)
    if job is None:
        return False
    attempt = and_(attempts.c.job_id == job.id, attempts.c.n == job.attempt)
    connection.execute(update(attempts).where(attempt).values(resumed_from=step))
    # What is later could not be gone on from, and is told anew: there may be another best this time.
    _forget_paths(connection, job.id, checkpoints.c.step > step, best=False)
    return True


def remark(connection: Connection, token: str, step: int, code: str, detail: str) -> bool:
    """See `Book.remark`."""
    data = {"step": step, "code": code, "detail": detail}
    job = touch(connection, _held(token), values={}, kind="remark", data=data)
    if job is None:
        return False
    if code in VERIFIED:
        attempt = and_(attempts.c.job_id == job.id, attempts.c.n == job.attempt)
        connection.execute(update(attempts).where(attempt).values(resume_verified=VERIFIED[code]))
    return True


def finish(
    connection: Connection,
    token: str,
    event: Event,
    reason: Reason | None,
    progress: Progress | None,
    *,
    max_infra_retries: int,
) -> bool:
    """See `Book.finish`."""
    if event not in ENDINGS:
        raise ValueError(
            f"an attempt ends in one of {sorted(ending.value for ending in ENDINGS)}, got {event.value!r}; "
            "report what happened, the order book draws the conclusion"
        )
    job = _locked(connection, token)
    if job is None:
        return False
    end_attempt(connection, job, event, reason, _held(token), progress=progress, max_infra_retries=max_infra_retries)
    return True


def end_attempt(
    connection: Connection,
    job: Row[Any],
    event: Event,
    reason: Reason | None,
    *guards: ColumnElement[bool],
    progress: Progress | None = None,
    max_infra_retries: int,
) -> Row[Any] | None:
    """End the attempt that a running job's row is in, in the way that fits the wishes and the retries left."""
    outcome = settle(event, Desired(job.desired), retries_left=job.infra_retries < max_infra_retries)
    values: dict[str, Any] = _columns(progress)
    if outcome in {Event.LOST, Event.EXHAUSTED}:
        losses = job.infra_retries + 1
        values |= {"infra_retries": losses, "not_before": now() + backoff_s(losses)}
        if outcome is Event.EXHAUSTED:
            why = f"; the last time: {reason.detail}" if reason else ""
            reason = Reason(
                "max-infra-retries",
                f"an attempt may be lost {max_infra_retries} times, got {losses}{why}; "
                "look into the worker's log and order the job again",
            )
    elif outcome is Event.CANCELLED and event is not Event.CANCELLED:
        reason = None  # how the attempt ended does not matter any more
    return advance(connection, outcome, *guards, values=values, reason=reason)


def set_mlflow_run(connection: Connection, job_id: str, run_id: str, experiment_id: str) -> str:
    """See `Book.set_mlflow_run`."""
    connection.execute(
        update(jobs)
        .where(jobs.c.id == job_id, jobs.c.mlflow_run_id.is_(None))
        .values(mlflow_run_id=run_id, mlflow_experiment_id=experiment_id)
    )
    return str(connection.execute(select(jobs.c.mlflow_run_id).where(jobs.c.id == job_id)).scalar_one())


def last_sendable_step(connection: Connection, job_id: str, attempt: int) -> int | None:
    """See `Book.last_sendable_step`."""
    tries = connection.execute(
        select(attempts.c.n, attempts.c.outcome, attempts.c.resumed_from)
        .where(attempts.c.job_id == job_id, attempts.c.n >= attempt)
        .order_by(attempts.c.n)
    ).all()
    if tries[-1].n == attempt and tries[-1].outcome not in {Event.LOST, Event.RELEASED, Event.PAUSED}:
        return None
    kept = _history(connection, job_id)
    newest = kept[0].step if kept else 0
    return min(
        (newest if row.resumed_from is None else row.resumed_from for row in tries if row.n > attempt), default=newest
    )


def backoff_s(losses: int) -> float:
    """Seconds to wait before a job that was lost so many times is tried again: none at first, then growing.

    Example:
        >>> [backoff_s(losses) for losses in (1, 2, 3, 4, 20)]
        [0.0, 5.0, 10.0, 20.0, 300.0]
    """
    return 0.0 if losses <= 1 else min(5.0 * 2.0 ** (losses - 2), MAX_BACKOFF_S)


def _held(token: str) -> ColumnElement[bool]:
    return and_(jobs.c.lease_token == token, jobs.c.state == State.RUNNING.value)


def _locked(connection: Connection, token: str) -> Row[Any] | None:
    return connection.execute(select(jobs).where(_held(token)).with_for_update()).one_or_none()


def _columns(progress: Progress | None) -> dict[str, Any]:
    if progress is None:
        return {}
    return {"progress_step": progress.step, "epoch": progress.epoch, "steps_per_s": progress.steps_per_s}
