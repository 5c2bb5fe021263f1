"""The order book: jobs in SQL. It is the truth; the queue is only a bell, and MLflow a projection.

Every change of state is one compare-and-set on the job's row, guarded by its state, its dispatch number or its lease
token, and writes its event in the same transaction. Times are epoch seconds on the database's own clock.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Self

from sqlalchemy import delete, select

from normcore.spec import JobSpec
from worker import census, leases, orders, reconcile, schema
from worker.census import Census
from worker.clock import now
from worker.database import BookUnavailable, Database
from worker.orders import AlreadyEnded, BadCursor, IdempotencyConflict, NoSuchJob
from worker.pools import Pool, obstacle
from worker.rows import attempt_of, checkpoint_of, event_of
from worker.schema import SchemaTooNew
from worker.states import TERMINAL, Desired, Event, State
from worker.tables import attempts, checkpoints, job_events, jobs, metrics, schedulers, workers
from worker.views import (
    Attempt,
    CheckpointRow,
    Claim,
    Dispatch,
    Job,
    JobEvent,
    Lease,
    Mended,
    MetricPoint,
    Page,
    Progress,
    Reason,
    Submission,
    WorkerRow,
)

if TYPE_CHECKING:
    from worker.settings import Settings

__all__ = [
    "TERMINAL",
    "AlreadyEnded",
    "Attempt",
    "BadCursor",
    "Book",
    "BookUnavailable",
    "Census",
    "CheckpointRow",
    "Claim",
    "Desired",
    "Dispatch",
    "Event",
    "IdempotencyConflict",
    "Job",
    "JobEvent",
    "Lease",
    "Mended",
    "MetricPoint",
    "NoSuchJob",
    "Page",
    "Progress",
    "Reason",
    "SchemaTooNew",
    "State",
    "Submission",
    "WorkerRow",
]


class Book:
    """The one door to the jobs. Safe to share between threads; the schema comes from `worker.migrate.upgrade(url)`.

    Any method raises `BookUnavailable` when the database cannot be reached.

    Args:
        url: SQLAlchemy URL, SQLite or Postgres.
        lease_ttl_s: a lease that is not renewed for so long has run out; a worker not seen for so long is not live.
        dispatch_timeout_s: a dispatch that is not claimed for so long is made again.
        max_infra_retries: how often a job is tried again after its worker or trainer was lost.
    """

    def __init__(
        self,
        url: str,
        *,
        lease_ttl_s: float = 30.0,
        dispatch_timeout_s: float = 60.0,
        max_infra_retries: int = 5,
    ) -> None:
        self.database = Database(url)
        self._ttl_s = lease_ttl_s
        self._dispatch_timeout_s = dispatch_timeout_s
        self._max_infra_retries = max_infra_retries

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """The book that the settings name, with their times and limits."""
        return cls(
            settings.database,
            lease_ttl_s=settings.lease_ttl_s,
            dispatch_timeout_s=settings.dispatch_timeout_s,
            max_infra_retries=settings.max_infra_retries,
        )

    def close(self) -> None:
        """Close the connections."""
        self.database.close()

    def ping(self) -> float:
        """The time on the database's clock.

        Raises:
            BookUnavailable: the database cannot be reached, or its migrations were not applied.
        """
        with self.database.read() as connection:
            schema.require_migrated(schema.current(connection))
            connection.execute(select(jobs.c.id).limit(1))
            return float(connection.execute(select(now())).scalar_one())

    def require_schema(self) -> None:
        """Nothing, where the database has the schema that this version works with; what a service asks as it starts.

        Raises:
            BookUnavailable: the database cannot be reached, or migrations are missing.
            SchemaTooNew: a later version has migrated it.
        """
        with self.database.read() as connection:
            revision = schema.current(connection)
        schema.require_known(revision)
        schema.require_migrated(revision)

    # What a person does.

    def submit(self, spec: JobSpec, *, idempotency_key: str | None = None, priority: int = 0) -> Submission:
        """Order a job. The same key finds the job that it ordered before, however often and in parallel it is sent.

        Raises:
            IdempotencyConflict: the key was used for another spec.
        """
        with self.database.write() as connection:
            return orders.submit(connection, spec, idempotency_key=idempotency_key, priority=priority)

    def job(self, job_id: str) -> Job | None:
        """A job as it stands, or None where there is no such job."""
        with self.database.read() as connection:
            return orders.find(connection, job_id)

    def jobs(
        self,
        *,
        states: Collection[State] = (),
        labels: Mapping[str, str] | None = None,
        limit: int = 50,
        cursor: str | None = None,
    ) -> Page:
        """A page of jobs, newest first, in any of the states and with all of the labels.

        Pages do not shift when jobs are added meanwhile.

        Raises:
            BadCursor: the cursor is not from a page.
        """
        with self.database.read() as connection:
            return orders.page(connection, states=states, with_labels=labels or {}, limit=limit, cursor=cursor)

    def wish(self, job_id: str, desired: Desired) -> Job:
        """Wish that a job runs, pauses, is cancelled or killed; the job as it is then.

        A job that waits is moved at once; a running one learns of it when its lease is renewed. A cancel is never
        taken back, and cancelling what is cancelled changes nothing.

        Raises:
            NoSuchJob: no job has this id.
            AlreadyEnded: the job ended before; it is left as it is.
        """
        with self.database.write() as connection:
            return orders.wish(connection, job_id, desired)

    def events(self, job_id: str, after: int = 0, limit: int = 500) -> list[JobEvent]:
        """What happened to a job, oldest first, from the event after number `after` on."""
        statement = select(job_events).where(job_events.c.job_id == job_id, job_events.c.seq > after)
        with self.database.read() as connection:
            return [event_of(row) for row in connection.execute(statement.order_by(job_events.c.seq).limit(limit))]

    def metrics(
        self, job_id: str, key: str | None = None, after_step: int | None = None, limit: int | None = None
    ) -> list[MetricPoint]:
        """A job's curves by key and step; or one of them, after a step."""
        statement = select(metrics.c.key, metrics.c.step, metrics.c.value).where(metrics.c.job_id == job_id)
        if key is not None:
            statement = statement.where(metrics.c.key == key)
        if after_step is not None:
            statement = statement.where(metrics.c.step > after_step)
        with self.database.read() as connection:
            rows = connection.execute(statement.order_by(metrics.c.key, metrics.c.step).limit(limit))
            return [MetricPoint(row.key, row.step, row.value) for row in rows]

    def metric_keys(self, job_id: str) -> list[str]:
        """The names of a job's curves."""
        statement = select(metrics.c.key).where(metrics.c.job_id == job_id).distinct().order_by(metrics.c.key)
        with self.database.read() as connection:
            return list(connection.scalars(statement))

    def checkpoints(self, job_id: str) -> list[CheckpointRow]:
        """A job's committed checkpoints by step, with those that were deleted from disk since."""
        statement = select(checkpoints).where(checkpoints.c.job_id == job_id).order_by(checkpoints.c.step)
        with self.database.read() as connection:
            return [checkpoint_of(row) for row in connection.execute(statement)]

    def attempts(self, job_id: str) -> list[Attempt]:
        """A job's attempts, from the first."""
        statement = select(attempts).where(attempts.c.job_id == job_id).order_by(attempts.c.n)
        with self.database.read() as connection:
            return [attempt_of(row) for row in connection.execute(statement)]

    # What a worker does.

    def claim(self, job_id: str, dispatch_seq: int, worker: str) -> Claim | None:
        """Take a dispatched job: a new attempt under a new token. None: the message is late, doubled or cancelled."""
        with self.database.write() as connection:
            return leases.claim(connection, job_id, dispatch_seq, worker, ttl_s=self._ttl_s)

    def resumed(self, token: str, step: int, passed_over: Sequence[str] = ()) -> bool:
        """Write down which step the attempt really goes on from, and why not from a newer one; 0 is from scratch.

        False: the token is fenced.
        """
        with self.database.write() as connection:
            return leases.resumed(connection, token, step, passed_over)

    def renew(self, token: str, progress: Progress | None = None) -> Lease | None:
        """Renew the lease and report progress; what the person wishes. None: fenced, stop at once, write nothing."""
        with self.database.write() as connection:
            return leases.renew(connection, token, progress, ttl_s=self._ttl_s)

    def add_metrics(self, token: str, points: Iterable[MetricPoint]) -> bool:
        """Add points to the curves; a point that is there already stays. False: the token is fenced.

        A value that is not finite is kept as `<key>_nonfinite` = 1.
        """
        with self.database.write() as connection:
            return leases.add_metrics(connection, token, points)

    def commit_checkpoint(
        self,
        token: str,
        *,
        step: int,
        path: str,
        sha256: str,
        size: int,
        kind: str = "periodic",
        best: bool = False,
    ) -> bool:
        """Make a checkpoint that lies whole on disk one to resume from. False: the token is fenced."""
        with self.database.write() as connection:
            return leases.commit_checkpoint(
                connection, token, step=step, path=path, sha256=sha256, size=size, kind=kind, best=best
            )

    def retire_checkpoints(self, token: str, keep: int) -> tuple[CheckpointRow, ...]:
        """Give up all checkpoints on disk but the newest `keep`, the best and the last; what may be deleted now."""
        with self.database.write() as connection:
            return leases.retire_checkpoints(connection, token, keep)

    def retire_ended(self, job_id: str) -> tuple[CheckpointRow, ...]:
        """Give up the checkpoints on disk of a job that has ended, but the newest and the best; see above.

        Of a job that has not ended nothing is given up.
        """
        with self.database.write() as connection:
            return leases.retire_ended(connection, job_id)

    def remark(self, token: str, step: int, code: str, detail: str) -> bool:
        """Write down what a reader of the results should know, as an event. False: the token is fenced.

        `resume_verified` and `resume_differs` are also told of the attempt.
        """
        with self.database.write() as connection:
            return leases.remark(connection, token, step, code, detail)

    def finish(self, token: str, event: Event, reason: Reason | None = None, progress: Progress | None = None) -> bool:
        """Report how the attempt ended, exactly once. False: the token is fenced, and nothing was written.

        `event` is succeeded, diverged, failed, cancelled, paused, released or lost. A lost attempt is charged to the
        infrastructure's retries and the job is queued again, or failed when they are used up; `worker.states.settle`
        says what the wishes make of it.
        """
        with self.database.write() as connection:
            return leases.finish(connection, token, event, reason, progress, max_infra_retries=self._max_infra_retries)

    def release(self, token: str, reason: Reason | None = None) -> bool:
        """Give the job back to the queue in good order: nothing is charged. False: the token is fenced."""
        return self.finish(token, Event.RELEASED, reason)

    def set_mlflow_run(self, job_id: str, *, run_id: str, experiment_id: str) -> str:
        """Name the MLflow run that mirrors a job, also after its end; the first one named stays, and is returned."""
        with self.database.write() as connection:
            return leases.set_mlflow_run(connection, job_id, run_id, experiment_id)

    def last_sendable_step(self, job_id: str, attempt: int) -> int | None:
        """Up to which step the points of an attempt belong to the job's history; None is all of them.

        What an attempt measured after the checkpoint that a later one went on from is measured again by that one.
        Until it is known where the next attempt goes on from, the newest checkpoint on disk is taken for it.
        """
        with self.database.read() as connection:
            return leases.last_sendable_step(connection, job_id, attempt)

    def worker_started(self, name: str, device: str, *, gpus: int = 1, processes: int = 1) -> list[str]:
        """Make a worker known at its start, before its first message: jobs of an earlier life are lost at once.

        Without it they are lost when their leases run out. The ids of the jobs that were.
        """
        pool = Pool.of(device, gpus=gpus, processes=processes)
        with self.database.write() as connection:
            return reconcile.worker_started(connection, name, device, pool, max_infra_retries=self._max_infra_retries)

    def worker_seen(self, name: str, device: str, *, gpus: int = 1, processes: int = 1) -> None:
        """Make known that a worker lives.

        Its pool follows from its device, `cpu` or `cuda:<index>`, and from how many GPUs and how many processes on its
        CPU it lets a job use; a worker on a CPU has no GPUs.
        """
        pool = Pool.of(device, gpus=gpus, processes=processes)
        with self.database.write() as connection:
            reconcile.worker_seen(connection, name, device, pool)

    def worker_gone(self, name: str) -> None:
        """Make known that a worker takes no more jobs."""
        with self.database.write() as connection:
            connection.execute(delete(workers).where(workers.c.name == name))

    def workers(self) -> list[WorkerRow]:
        """Every worker by name, live or not."""
        with self.database.read() as connection:
            return reconcile.list_workers(connection, ttl_s=self._ttl_s)

    def obstacles(self, waiting: Iterable[Job]) -> dict[str, Reason]:
        """Why no live worker could run jobs even if it were free, by job id; those that some worker could are left out.

        Only of jobs that are queued.
        """
        queued = [job for job in waiting if job.state is State.QUEUED]
        if not queued:
            return {}
        pools = {Pool.named(worker.pool) for worker in self.workers() if worker.live}
        found = {job.id: obstacle(job.spec.device, job.spec.devices, pools) for job in queued}
        return {job_id: reason for job_id, reason in found.items() if reason is not None}

    def census(self, spooled: Collection[str] = ()) -> Census:
        """The laboratory in figures, as they stand at one moment.

        Args:
            spooled: ids of jobs that something of waits for MLflow; those of them that have ended are counted.
        """
        with self.database.read() as connection:
            return census.taken(connection, ttl_s=self._ttl_s, spooled=spooled)

    # What the scheduler does.

    def scheduler_seen(self, name: str) -> None:
        """Make known that a scheduler is at work."""
        with self.database.write() as connection:
            reconcile.scheduler_seen(connection, name)

    def scheduler_gone(self, name: str) -> None:
        """Make known that a scheduler has ended in good order."""
        with self.database.write() as connection:
            connection.execute(delete(schedulers).where(schedulers.c.name == name))

    def dispatch(self, limit: int = 100) -> list[Dispatch]:
        """Hand queued jobs to free live workers; publish them after this returns.

        Each worker gets the first job, by priority and then by age, whose device and number of devices it has; of
        several workers a job takes one with no more devices than it needs, if there is one. A job that no free worker
        can run is passed over: it holds up nobody and loses no place.
        """
        with self.database.read() as connection:
            if not reconcile.work_waits(connection, ttl_s=self._ttl_s):
                return []
        with self.database.write() as connection:
            return reconcile.dispatch(connection, limit=limit, ttl_s=self._ttl_s)

    def withdraw(self, job_id: str, dispatch_seq: int) -> bool:
        """Queue a job again whose dispatch could not be published. False: it was claimed or moved on meanwhile."""
        with self.database.write() as connection:
            return reconcile.withdraw(connection, job_id, dispatch_seq) is not None

    def start_over(self) -> list[str]:
        """Queue the jobs that are under way again, at no charge, and forget the workers: for a book without any.

        The ids of the jobs that were under way; one that was to be cancelled or paused is that then.
        """
        with self.database.write() as connection:
            return reconcile.start_over(connection)

    def reconcile(self) -> Mended:
        """Put right what was lost: leases that ran out, and dispatches that nobody claimed."""
        with self.database.read() as connection:
            lost, unclaimed = reconcile.overdue(connection, dispatch_timeout_s=self._dispatch_timeout_s)
        mended: dict[State, list[str]] = {}
        for job in lost:
            with self.database.write() as connection:
                row = reconcile.mend_lease(connection, job, max_infra_retries=self._max_infra_retries)
            if row is not None:
                mended.setdefault(State(row.state), []).append(row.id)
        again = []
        for job in unclaimed:
            with self.database.write() as connection:
                if reconcile.withdraw(connection, job.id, job.dispatch_seq) is not None:
                    again.append(job.id)
        return Mended(
            requeued=tuple(mended.pop(State.QUEUED, ())),
            failed=tuple(mended.pop(State.FAILED, ())),
            stopped=tuple(job_id for ids in mended.values() for job_id in ids),
            unclaimed=tuple(again),
        )
