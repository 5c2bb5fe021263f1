"""The one way in which a job changes: a compare-and-set on its row, and its event, in one transaction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, insert, update

from worker.clock import now
from worker.states import RULES, TERMINAL, Event, State
from worker.tables import attempts, job_events, jobs
from worker.views import Reason

MAX_CODE = 64
MAX_DETAIL = 4000


def advance(
    connection: Connection,
    event: Event,
    *guards: ColumnElement[bool],
    values: Mapping[str, Any] | None = None,
    reason: Reason | None = None,
    data: Mapping[str, Any] | None = None,
) -> Row[Any] | None:
    """Move the one job that the guards select, if the event is legal in its state; the row as it is then, or None.

    Leaving `running` drops the lease and closes the attempt; a terminal state sets the end. The event is numbered out
    of the job's own row, which stays locked until the commit: a job's events become visible in their order.
    """
    rule, reason = RULES[event], _storable(reason)
    target = rule.target
    changes: dict[str, Any] = {"state": target.value, "event_seq": jobs.c.event_seq + 1}
    if target is not State.RUNNING:
        changes |= {"lease_token": None, "lease_owner": None, "lease_expires_at": None}
    if target in TERMINAL:
        changes |= {"finished_at": now(), **_columns(reason)}
    statement = (
        update(jobs)
        .where(jobs.c.state.in_([source.value for source in rule.sources]), *guards)
        .values(**changes, **(values or {}))
        .returning(jobs)
    )
    row = connection.execute(statement).one_or_none()
    if row is None:
        return None
    if State.RUNNING in rule.sources:
        connection.execute(
            update(attempts)
            .where(attempts.c.job_id == row.id, attempts.c.n == row.attempt, attempts.c.ended_at.is_(None))
            .values(ended_at=now(), outcome=event.value, last_step=row.progress_step, **_columns(reason))
        )
    facts = dict(data or {})
    if row.attempt:
        facts["attempt"] = row.attempt
    if reason is not None:
        facts["reason"] = {"code": reason.code, "detail": reason.detail}
    write_event(connection, row, event.value, facts)
    return row


def touch(
    connection: Connection,
    *guards: ColumnElement[bool],
    values: Mapping[str, Any],
    kind: str,
    data: Mapping[str, Any],
) -> Row[Any] | None:
    """Change the one job that the guards select without moving it, and write that down as an event."""
    statement = update(jobs).where(*guards).values(event_seq=jobs.c.event_seq + 1, **values).returning(jobs)
    row = connection.execute(statement).one_or_none()
    if row is not None:
        write_event(connection, row, kind, data)
    return row


def write_event(connection: Connection, row: Row[Any], kind: str, data: Mapping[str, Any]) -> None:
    """Write the event that belongs to a job's row as it was just changed."""
    connection.execute(
        insert(job_events).values(
            job_id=row.id, seq=row.event_seq, at=now(), type=kind, state=row.state, data=dict(data)
        )
    )


def _columns(reason: Reason | None) -> dict[str, str | None]:
    code, detail = (None, None) if reason is None else (reason.code, reason.detail)
    return {"reason_code": code, "reason_detail": detail}


def _storable(reason: Reason | None) -> Reason | None:
    """A reason that both databases keep: it may come out of a dying process, and Postgres takes no NUL in text."""
    if reason is None:
        return None
    detail = reason.detail.encode("utf-8", "replace").decode().replace("\0", "")
    return Reason(reason.code[:MAX_CODE], detail[:MAX_DETAIL])
