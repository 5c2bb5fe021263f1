"""What an ended job leaves on the worker's disk: its newest and its best checkpoint. All of them stand in MLflow."""

from __future__ import annotations

import logging
from pathlib import Path

from worker.book import Book, BookUnavailable
from worker.resume import sweep
from worker.standstill import changing
from worker.states import TERMINAL

log = logging.getLogger("normcore.tidy")


def tidy(book: Book, folder: Path) -> None:
    """Delete the other checkpoints from the folder of a job, which bears its id, if the job has ended.

    Those that still wait for MLflow are held by the spool. While a backup is taken all stay, and then until the worker
    starts anew.
    """
    with changing(folder.parent) as may:
        job = book.job(folder.name) if may else None
        if job is None or job.state not in TERMINAL:
            return
        book.retire_ended(job.id)
        sweep(folder, [row for row in book.checkpoints(job.id) if row.path is not None])


def tidy_all(book: Book, jobs: Path) -> None:
    """Tidy the folders of jobs that ended while no worker looked: cancelled as they waited, or lost once too often."""
    try:
        for folder in sorted(jobs.glob("*")):
            if len(list(folder.glob("*/*step_*"))) > 1:
                tidy(book, folder)
    except BookUnavailable as error:
        log.warning("old checkpoints stay for now: %s", error)
