"""The order book in figures: what an operator watches. Few rows come out of it, however many jobs there are."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, case, func, select

from worker.clock import now
from worker.pools import Pool, obstacle
from worker.reconcile import list_workers
from worker.states import TERMINAL, State
from worker.tables import attempts, jobs, schedulers
from worker.views import WorkerRow

WAIT_BOUNDS_S = (1.0, 10.0, 60.0, 600.0, 3600.0, 36000.0)
"""The upper bounds that waiting times are counted by."""
MAX_SPOOLED = 1000
"""So many jobs with a spool are looked up, the oldest first."""


@dataclass(frozen=True, slots=True)
class Queue:
    """Queued jobs that wait for the same thing."""

    reason: str
    """`no-worker`, `no-gpu` or `too-few-devices` where no live worker can run them; `backoff` after a loss, until they
    may be tried again; `busy` where it takes a worker that is free."""
    jobs: int
    oldest_age_s: float
    """Seconds since the oldest of them was ordered."""


@dataclass(frozen=True, slots=True)
class RunningJob:
    """A job under a lease."""

    id: str
    worker: str
    step: int
    num_steps: int
    steps_per_s: float | None
    heartbeat_age_s: float
    """Seconds since its worker last renewed the lease."""


@dataclass(frozen=True, slots=True)
class Endings:
    """Attempts that ended in the same way."""

    outcome: str
    reason: str
    """The code of the reason; empty where there is none."""
    attempts: int


@dataclass(frozen=True, slots=True)
class Waits:
    """How long jobs waited from their order to the begin of their first attempt."""

    jobs: int
    total_s: float
    up_to: Mapping[float, int]
    """Jobs that waited no longer than each of `WAIT_BOUNDS_S`."""


@dataclass(frozen=True, slots=True)
class Unsent:
    """Jobs that have ended, and whose record waits in a spool for MLflow."""

    jobs: int
    oldest_age_s: float
    """Seconds since the first of them ended; 0 where there is none."""


@dataclass(frozen=True, slots=True)
class Census:
    """The whole laboratory at one moment."""

    states: Mapping[State, int]
    queues: tuple[Queue, ...]
    running: tuple[RunningJob, ...]
    attempts: int
    """Attempts begun so far."""
    repeated: int
    """Those of them that were not a job's first."""
    endings: tuple[Endings, ...]
    waits: Waits
    workers: tuple[WorkerRow, ...]
    """Those that are live."""
    schedulers: int
    """Schedulers seen within the lease's time to live."""
    unsent: Unsent


def taken(connection: Connection, *, ttl_s: float, spooled: Collection[str]) -> Census:
    """See `Book.census`. Where it can, it reads indexes alone: a job's row is long, and there may be many."""
    by_state = select(jobs.c.state, func.count()).group_by(jobs.c.state)
    workers = tuple(worker for worker in list_workers(connection, ttl_s=ttl_s) if worker.live)
    begun, repeated, endings = _attempts(connection)
    at_work = select(func.count()).select_from(schedulers).where(schedulers.c.seen_at > now() - ttl_s)
    return Census(
        states=dict.fromkeys(State, 0) | {State(state): n for state, n in connection.execute(by_state)},
        queues=_queues(connection, {Pool.named(worker.pool) for worker in workers}),
        running=_running(connection, ttl_s),
        attempts=begun,
        repeated=repeated,
        endings=endings,
        waits=_waits(connection),
        workers=workers,
        schedulers=connection.execute(at_work).scalar_one(),
        unsent=_unsent(connection, spooled),
    )


def _queues(connection: Connection, pools: set[Pool]) -> tuple[Queue, ...]:
    backs_off = case((jobs.c.not_before > now(), 1), else_=0).label("backs_off")
    statement = (
        select(jobs.c.device, jobs.c.devices, backs_off, func.count().label("n"), now() - func.min(jobs.c.created_at))
        .where(jobs.c.state == State.QUEUED.value)
        .group_by(jobs.c.device, jobs.c.devices, backs_off)
    )
    found: dict[str, Queue] = {}
    for device, devices, later, n, age_s in connection.execute(statement):
        impossible = obstacle(device, devices, pools)
        reason = impossible.code if impossible else "backoff" if later else "busy"
        before = found.get(reason, Queue(reason, 0, 0.0))
        found[reason] = Queue(reason, before.jobs + n, max(before.oldest_age_s, age_s))
    return tuple(found[reason] for reason in sorted(found))


def _running(connection: Connection, ttl_s: float) -> tuple[RunningJob, ...]:
    heartbeat_age_s = now() - (jobs.c.lease_expires_at - ttl_s)
    columns = (jobs.c.id, jobs.c.lease_owner, jobs.c.progress_step, jobs.c.num_steps, jobs.c.steps_per_s)
    statement = select(*columns, heartbeat_age_s).where(jobs.c.state == State.RUNNING.value).order_by(jobs.c.id)
    return tuple(RunningJob(*row) for row in connection.execute(statement))


def _attempts(connection: Connection) -> tuple[int, int, tuple[Endings, ...]]:
    again = func.sum(case((attempts.c.n > 1, 1), else_=0))
    statement = select(attempts.c.outcome, attempts.c.reason_code, func.count(), again)
    rows = connection.execute(statement.group_by(attempts.c.outcome, attempts.c.reason_code)).all()
    ended = sorted((outcome, code or "", n) for outcome, code, n, _ in rows if outcome is not None)
    return sum(row[2] for row in rows), sum(row[3] for row in rows), tuple(Endings(*row) for row in ended)


def _waits(connection: Connection) -> Waits:
    wait_s = jobs.c.started_at - jobs.c.created_at
    sums = [func.coalesce(func.sum(case((wait_s <= bound, 1), else_=0)), 0) for bound in WAIT_BOUNDS_S]
    statement = select(func.count(), func.coalesce(func.sum(wait_s), 0.0), *sums).where(jobs.c.started_at.is_not(None))
    n, total_s, *counts = connection.execute(statement).one()
    return Waits(n, total_s, dict(zip(WAIT_BOUNDS_S, counts, strict=True)))


def _unsent(connection: Connection, spooled: Collection[str]) -> Unsent:
    oldest = sorted(spooled)[:MAX_SPOOLED]  # ids begin with the time
    ended = jobs.c.state.in_([state.value for state in TERMINAL])
    age_s = func.coalesce(now() - func.min(jobs.c.finished_at), 0.0)
    return Unsent(*connection.execute(select(func.count(), age_s).where(jobs.c.id.in_(oldest), ended)).one())
