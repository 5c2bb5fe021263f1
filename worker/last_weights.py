"""The weights that a job ended with, for other jobs whose probes look at them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from worker import resume
from worker.book import Book
from worker.views import CheckpointRow, Job

log = logging.getLogger("normcore.last_weights")


def last_checkpoint(job: Job, rows: Sequence[CheckpointRow]) -> CheckpointRow | None:
    """The checkpoint of a job's end while it is kept, on a worker's disk or in MLflow; None where there is none."""
    kept = (row for row in rows if row.kind == "last" and (row.path is not None or job.mlflow_run_id is not None))
    return next(kept, None)


def find(book: Book, job_id: str, fetch: Callable[[str | None, CheckpointRow], Path | None]) -> Path | None:
    """The folder of a job's last checkpoint, verified: on this disk, or else from MLflow; None where it is gone.

    Args:
        book: The order book.
        job_id: Whose.
        fetch: Brings a checkpoint's files from a run of MLflow; None where they cannot be had.
    """
    job = book.job(job_id)
    row = None if job is None else last_checkpoint(job, book.checkpoints(job_id))
    if job is None or row is None:
        return None
    run_id = job.mlflow_run_id
    start = resume.choose([row], lambda wanted: fetch(run_id, wanted))
    for why in start.passed_over:
        log.warning("the last weights of job %s: %s", job_id, why)
    return start.path
