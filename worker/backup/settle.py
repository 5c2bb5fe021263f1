"""A restored order book made ready to go on: `python -m worker.backup.settle`, before any service starts.

Its schema is brought forward, and jobs that were running or on their way to a worker then are queued again at no
charge: no worker has them. They go on from their newest checkpoints.
"""

from __future__ import annotations

from contextlib import closing

from worker import migrate
from worker.book import Book
from worker.settings import settings


def main() -> None:
    """Settle the order book that the settings name."""
    config = settings()
    migrate.upgrade(config.database)
    with closing(Book.open(config)) as book:
        print(f"{len(book.start_over())} jobs that were under way are queued again")


if __name__ == "__main__":
    main()
