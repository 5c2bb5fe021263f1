"""The task of the queue: claim, supervise, finish."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.book import Book, BookUnavailable
from worker.courier import Courier
from worker.nursery import Nursery
from worker.queue import TASK
from worker.recorder import fetch_checkpoint
from worker.settings import Settings
from worker.spool import Spool
from worker.states import Event
from worker.supervisor import Supervisor
from worker.views import CheckpointRow, Reason

TRAINER_S = 60.0
"""How long a message waits for a trainer to become warm; then the scheduler dispatches the job again."""

log = logging.getLogger("normcore.tasks")


@dataclass(frozen=True, slots=True)
class Workplace:
    """What a worker works with."""

    settings: Settings
    book: Book
    nursery: Nursery
    courier: Courier
    draining: threading.Event
    """Set when the worker is to end."""


def register(app: Any, place: Workplace) -> None:
    """Have a queue's app call `work`."""

    @app.task(name=TASK)  # type: ignore[untyped-decorator]
    def run(job_id: str, dispatch_seq: int) -> None:
        work(place, job_id, dispatch_seq)


def work(place: Workplace, job_id: str, dispatch_seq: int) -> None:
    """Run one attempt of a job, if this message is still the valid one.

    A trainer comes first: a worker that cannot train does not claim.
    """
    child = place.nursery.take(TRAINER_S)
    if child is None:
        log.error("job %s is not claimed: no trainer became warm within %g s", job_id, TRAINER_S)
        return
    claimed_at = time.monotonic()
    try:
        claim = place.book.claim(job_id, dispatch_seq, place.settings.worker_name)
    except BookUnavailable as error:
        log.warning("job %s is not claimed: %s", job_id, error)
        claim = None
    if claim is None:
        log.info("message %d of job %s is worth nothing any more", dispatch_seq, job_id)
        place.nursery.give_back(child)
        return

    def fetch(run_id: str | None, row: CheckpointRow, folder: Path) -> Path | None:
        if run_id is None:
            return None
        return fetch_checkpoint(place.settings.mlflow_url, run_id, row.step, folder)

    try:
        spools = place.settings.state_dir / "spool"
        worker = place.settings.worker_name
        with closing(Spool.begin(spools, job_id=claim.job_id, attempt=claim.attempt, worker=worker)) as spool:
            Supervisor(
                claim,
                child,
                place.book,
                spool,
                place.settings,
                claimed_at=claimed_at,
                fetch=fetch,
                draining=place.draining,
                first_step=place.nursery.replenish,
            ).run()
    except Exception as error:
        log.exception("job %s attempt %d: its worker failed", claim.job_id, claim.attempt)
        detail = f"a worker must carry an attempt to its end, got {type(error).__name__}: {error}; it is tried again"
        place.book.finish(claim.token, Event.LOST, Reason("worker-error", detail))
    finally:
        child.close()
        place.nursery.replenish()
        place.courier.wake()
