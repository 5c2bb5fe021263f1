"""The order book, seen by the scheduler: handing out work, and putting right what was lost on the way."""

from __future__ import annotations

from collections import Counter
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, delete, func, or_, select, text

from worker.clock import now
from worker.leases import end_attempt
from worker.pools import Pool, preferred
from worker.states import Desired, Event, State
from worker.tables import jobs, schedulers, workers
from worker.transitions import advance
from worker.upsert import insert_into
from worker.views import Dispatch, Reason, WorkerRow

DISPATCH_LOCK = 0x6E6F726D636F7265
"""Postgres' advisory lock of the one scheduler that dispatches."""

_RUNNABLE = (
    jobs.c.state == State.QUEUED.value,
    jobs.c.desired == Desired.RUN.value,
    or_(jobs.c.not_before.is_(None), jobs.c.not_before <= now()),
)


def work_waits(connection: Connection, *, ttl_s: float) -> bool:
    """Whether a job waits and a worker is free; a look that locks nothing."""
    waiting = connection.execute(select(jobs.c.id).where(*_RUNNABLE).limit(1)).first()
    if waiting is None:
        return False
    free = free_workers(connection, ttl_s=ttl_s)
    return (
        bool(free) and connection.execute(select(jobs.c.id).where(*_RUNNABLE, _fits(free)).limit(1)).first() is not None
    )


def dispatch(connection: Connection, *, limit: int, ttl_s: float) -> list[Dispatch]:
    """See `Book.dispatch`.

    Each free worker gets the first job by priority and age that it can run. One that no free worker can run is passed
    over and keeps its place: it blocks nobody, and nothing that came later gets ahead of it at a worker that is large
    enough, so that small jobs do not starve it either.
    """
    if connection.dialect.name == "postgresql" and not connection.scalar(
        text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": DISPATCH_LOCK}
    ):
        return []  # another scheduler is at it
    free = free_workers(connection, ttl_s=ttl_s)
    candidates = connection.execute(
        select(jobs.c.id, jobs.c.device, jobs.c.devices)
        .where(*_RUNNABLE, _fits(free))
        .order_by(jobs.c.priority.desc(), jobs.c.created_at, jobs.c.id)
        .limit(min(limit, free.total()))
    ).all()
    dispatched = []
    for candidate in candidates:
        roomy = [pool for pool in +free if pool.devices_for(candidate.device) >= candidate.devices]
        if not roomy:
            continue
        pool = preferred(candidate.device, roomy)[0]
        row = advance(
            connection,
            Event.DISPATCHED,
            jobs.c.id == candidate.id,
            jobs.c.desired == Desired.RUN.value,
            values={
                "dispatch_seq": jobs.c.dispatch_seq + 1,
                "dispatched_at": now(),
                "pool": pool.name,
                "not_before": None,
            },
            data={"pool": pool.name},
        )
        if row is not None:
            free[pool] -= 1
            dispatched.append(Dispatch(row.id, row.dispatch_seq, pool.name))
    return dispatched


def _fits(free: Counter[Pool]) -> ColumnElement[bool]:
    """Jobs that one of the pools can run."""
    most = {device: max((pool.devices_for(device) for pool in free), default=0) for device in ("auto", "cpu", "cuda")}
    return or_(*(and_(jobs.c.device == device, jobs.c.devices <= devices) for device, devices in most.items()))


def free_workers(connection: Connection, *, ttl_s: float) -> Counter[Pool]:
    """Live workers without a job, less the dispatches that none of them has claimed yet, for each pool.

    One statement, so that a claim which commits meanwhile is seen on both sides of the subtraction or on neither.
    """
    busy = select(jobs.c.lease_owner).where(jobs.c.state == State.RUNNING.value, jobs.c.lease_owner.is_not(None))
    idle = (
        select(workers.c.pool, func.count().label("n"))
        .where(workers.c.seen_at > now() - ttl_s, workers.c.name.not_in(busy))
        .group_by(workers.c.pool)
    )
    on_the_way = (
        select(jobs.c.pool, (-func.count()).label("n"))
        .where(jobs.c.state == State.DISPATCHED.value)
        .group_by(jobs.c.pool)
    )
    free: Counter[Pool] = Counter()
    for pool, n in connection.execute(idle.union_all(on_the_way)):
        free[Pool.named(pool)] += n
    return +free  # without those that have none


def overdue(connection: Connection, *, dispatch_timeout_s: float) -> tuple[list[Row[Any]], list[Row[Any]]]:
    """Running jobs whose lease has run out, and dispatched jobs that nobody claimed in time.

    A time that is missing counts as long ago: otherwise a row that lacks it would live for ever.
    """
    lost = select(jobs).where(jobs.c.state == State.RUNNING.value, func.coalesce(jobs.c.lease_expires_at, 0.0) < now())
    unclaimed = select(jobs).where(
        jobs.c.state == State.DISPATCHED.value, func.coalesce(jobs.c.dispatched_at, 0.0) < now() - dispatch_timeout_s
    )
    return list(connection.execute(lost).all()), list(connection.execute(unclaimed).all())


def mend_lease(connection: Connection, job: Row[Any], *, max_infra_retries: int) -> Row[Any] | None:
    """End an attempt whose lease has run out, unless it was renewed or ended meanwhile."""
    reason = Reason(
        "worker-lost", f"a worker must renew its lease, got no word from {job.lease_owner} until the lease ran out"
    )
    return _lose(
        connection,
        job,
        reason,
        func.coalesce(jobs.c.lease_expires_at, 0.0) < now(),
        max_infra_retries=max_infra_retries,
    )


def withdraw(connection: Connection, job_id: str, dispatch_seq: int) -> Row[Any] | None:
    """Queue a dispatched job again, unless it was claimed meanwhile. Its message is worth nothing from then on."""
    return advance(connection, Event.UNCLAIMED, jobs.c.id == job_id, jobs.c.dispatch_seq == dispatch_seq)


def _lose(
    connection: Connection, job: Row[Any], reason: Reason, *guards: Any, max_infra_retries: int
) -> Row[Any] | None:
    locked = connection.execute(
        select(jobs).where(jobs.c.id == job.id, jobs.c.lease_token == job.lease_token, *guards).with_for_update()
    ).one_or_none()
    if locked is None:
        return None
    held = jobs.c.lease_token == job.lease_token
    return end_attempt(connection, locked, Event.LOST, reason, held, max_infra_retries=max_infra_retries)


def start_over(connection: Connection) -> list[str]:
    """See `Book.start_over`."""
    reason = Reason("restored", "the laboratory was restored from a backup of the time when this attempt was under way")
    running = connection.execute(select(jobs).where(jobs.c.state == State.RUNNING.value)).all()
    for job in running:
        end_attempt(connection, job, Event.RELEASED, reason, jobs.c.id == job.id, max_infra_retries=0)
    dispatched = connection.execute(select(jobs).where(jobs.c.state == State.DISPATCHED.value)).all()
    for job in dispatched:
        withdraw(connection, job.id, job.dispatch_seq)
    connection.execute(delete(workers))
    return [job.id for job in (*running, *dispatched)]


def worker_started(connection: Connection, name: str, device: str, pool: Pool, *, max_infra_retries: int) -> list[str]:
    """See `Book.worker_started`."""
    orphans = connection.execute(
        select(jobs).where(jobs.c.state == State.RUNNING.value, jobs.c.lease_owner == name)
    ).all()
    reason = Reason("worker-lost", f"a worker must outlive its job, got a new start of {name} in the middle of it")
    ended = [_lose(connection, job, reason, max_infra_retries=max_infra_retries) for job in orphans]
    worker_seen(connection, name, device, pool)
    return [row.id for row in ended if row is not None]


def worker_seen(connection: Connection, name: str, device: str, pool: Pool) -> None:
    """See `Book.worker_seen`."""
    columns = {"pool": pool.name, "device": device, "seen_at": now()}
    connection.execute(
        insert_into(connection, workers)
        .values(name=name, **columns)
        .on_conflict_do_update(index_elements=["name"], set_=columns)
    )


def scheduler_seen(connection: Connection, name: str) -> None:
    """See `Book.scheduler_seen`."""
    connection.execute(
        insert_into(connection, schedulers)
        .values(name=name, seen_at=now())
        .on_conflict_do_update(index_elements=["name"], set_={"seen_at": now()})
    )


def list_workers(connection: Connection, *, ttl_s: float) -> list[WorkerRow]:
    """See `Book.workers`."""
    held = jobs.c.state == State.RUNNING.value
    live = func.coalesce(workers.c.seen_at > now() - ttl_s, False)
    statement = (
        select(workers, live.label("live"), jobs.c.id.label("job_id"))
        .outerjoin(jobs, (jobs.c.lease_owner == workers.c.name) & held)
        .order_by(workers.c.name)
    )
    return [
        WorkerRow(row.name, row.pool, row.device, row.seen_at, bool(row.live), row.job_id)
        for row in connection.execute(statement)
    ]
