"""The order book, seen by a person: ordering, wishing and looking."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import uuid
from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import Connection, Row, Select, exists, false, insert, select, tuple_

from normcore.spec import JobSpec
from worker.clock import now
from worker.rows import job_of
from worker.states import TERMINAL, Desired, Event, State
from worker.tables import jobs, labels
from worker.transitions import advance, touch, write_event
from worker.upsert import insert_or_ignore
from worker.uuid7 import uuid7
from worker.views import Job, Page, Submission

MAX_KEY_LENGTH = 255


class IdempotencyConflict(ValueError):
    """An idempotency key was sent again with another spec."""


class NoSuchJob(LookupError):
    """No job has this id."""


class AlreadyEnded(ValueError):
    """A wish came for a job that has ended otherwise. `job` is the job as it stands."""

    def __init__(self, job: Job, desired: Desired) -> None:
        super().__init__(
            f"a wish must come before the end, got {desired.value!r} for job {job.id}, which is {job.state.value}; "
            "order a new job"
        )
        self.job = job


class BadCursor(ValueError):
    """A cursor that no page handed out."""


def submit(connection: Connection, spec: JobSpec, *, idempotency_key: str | None, priority: int) -> Submission:
    """See `Book.submit`."""
    if idempotency_key is not None and not 1 <= len(idempotency_key) <= MAX_KEY_LENGTH:
        raise ValueError(
            f"an idempotency key must have 1 to {MAX_KEY_LENGTH} characters, got {len(idempotency_key)}; "
            "send a shorter one, or none"
        )
    content = json.dumps(spec.model_dump(mode="json"), sort_keys=True)
    digest = hashlib.sha256(content.encode()).hexdigest()
    statement = (
        insert_or_ignore(connection, jobs, "idempotency_key")
        .values(
            id=uuid7(),
            name=spec.name,
            spec=content,
            spec_sha256=digest,
            idempotency_key=idempotency_key,
            priority=priority,
            device=spec.device,
            devices=spec.devices,
            state=State.QUEUED.value,
            desired=Desired.RUN.value,
            event_seq=1,
            created_at=now(),
            dispatch_seq=0,
            attempt=0,
            infra_retries=0,
            num_steps=spec.num_steps,
            progress_step=0,
            epoch=0.0,
            last_metrics={},
        )
        .returning(jobs)
    )
    row = connection.execute(statement).one_or_none()
    if row is None:
        return Submission(_ordered_before(connection, str(idempotency_key), digest), created=False)
    if spec.labels:
        rows = [{"job_id": row.id, "key": key, "value": value} for key, value in spec.labels.items()]
        connection.execute(insert(labels), rows)
    write_event(connection, row, "submitted", {"priority": priority})
    return Submission(job_of(row), created=True)


def _ordered_before(connection: Connection, idempotency_key: str, digest: str) -> Job:
    row = connection.execute(select(jobs).where(jobs.c.idempotency_key == idempotency_key)).one()
    if row.spec_sha256 != digest:
        raise IdempotencyConflict(
            f"an idempotency key stands for one spec, got {idempotency_key!r} with another spec than that of job "
            f"{row.id}; send a new key"
        )
    return job_of(row)


def find(connection: Connection, job_id: str) -> Job | None:
    """See `Book.job`."""
    row = connection.execute(select(jobs).where(jobs.c.id == job_id)).one_or_none()
    return None if row is None else job_of(row)


def page(
    connection: Connection, *, states: Collection[State], with_labels: Mapping[str, str], limit: int, cursor: str | None
) -> Page:
    """See `Book.jobs`."""
    statement = _filtered(states, with_labels)
    if cursor is not None:
        statement = statement.where(tuple_(jobs.c.created_at, jobs.c.id) < tuple_(*_decoded(cursor)))
    statement = statement.order_by(jobs.c.created_at.desc(), jobs.c.id.desc()).limit(limit + 1)
    rows = connection.execute(statement).all()
    return Page(tuple(job_of(row) for row in rows[:limit]), _encoded(rows[limit - 1]) if len(rows) > limit else None)


def _filtered(states: Collection[State], with_labels: Mapping[str, str]) -> Select[Any]:
    statement = select(jobs)
    if states:
        statement = statement.where(jobs.c.state.in_([state.value for state in states]))
    for key, value in with_labels.items():
        if "\0" in key + value:  # no label has one, and Postgres does not even ask
            return statement.where(false())
        statement = statement.where(
            exists().where(labels.c.job_id == jobs.c.id, labels.c.key == key, labels.c.value == value)
        )
    return statement


def _encoded(row: Row[Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps([row.created_at, row.id]).encode()).decode().rstrip("=")


def _decoded(cursor: str) -> tuple[float, str]:
    try:
        content = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        created_at, job_id = content
        return float(created_at), str(uuid.UUID(job_id))
    except (binascii.Error, ValueError, TypeError, AttributeError) as error:
        raise BadCursor(f"a cursor must come from a page's `next`, got {cursor!r}; start without one") from error


def wish(connection: Connection, job_id: str, desired: Desired) -> Job:
    """See `Book.wish`."""
    # Locked first, so that the job does not move on between looking and acting.
    row = connection.execute(select(jobs).where(jobs.c.id == job_id).with_for_update()).one_or_none()
    if row is None:
        raise NoSuchJob(f"a wish needs a job, got id {job_id!r}; list the jobs to find it")
    state, stopping = State(row.state), {Desired.CANCEL, Desired.KILL}
    if state in TERMINAL:
        if state is State.CANCELLED and desired in stopping:
            return job_of(row)
        raise AlreadyEnded(job_of(row), desired)
    if desired.value == row.desired or (row.desired in stopping and desired is not Desired.KILL):
        return job_of(row)
    event = _event_of_wish(state, desired)
    values = {"desired": desired.value}
    data = {"desired": desired.value}
    if event is None:
        changed = touch(connection, jobs.c.id == job_id, values=values, kind="wish", data=data)
    else:
        changed = advance(connection, event, jobs.c.id == job_id, jobs.c.state == row.state, values=values, data=data)
    assert changed is not None, "the row was locked"
    return job_of(changed)


def _event_of_wish(state: State, desired: Desired) -> Event | None:
    """What a wish does at once. A running job is asked through its lease instead."""
    if state is State.RUNNING:
        return None
    return {Desired.RUN: Event.RESUMED, Desired.PAUSE: Event.PAUSED}.get(desired, Event.CANCELLED)
