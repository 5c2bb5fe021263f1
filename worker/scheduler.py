"""The scheduler, its own process: `python -m worker.scheduler`. Hands queued jobs to free workers, and mends.

Two of them do no harm. It outlives the database and Redis being away: it says so once, and tries again.
"""

from __future__ import annotations

import logging
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

from worker import queue
from worker.book import Book, BookUnavailable, Dispatch, SchemaTooNew
from worker.queue import QueueUnavailable
from worker.settings import Settings, settings

log = logging.getLogger(__name__)

MAX_PAUSE_S = 5.0


class Scheduler:
    """Looks for work and for what was lost, one `tick` after the other.

    Args:
        book: the order book.
        publish: rings for a dispatch; raises `QueueUnavailable`.
        ping: raises `QueueUnavailable` while the queue cannot be reached.
        tick_s: seconds between looks for work.
        reconcile_every_s: seconds between looks for what was lost, and between the words that it is at work.
        name: what it makes itself known by in the order book.
        beat: a file that is touched after every turn, also while Redis or the database is away: one that is old says
            that a turn does not end.
    """

    def __init__(
        self,
        book: Book,
        *,
        publish: Callable[[str, int, str], None] = queue.publish,
        ping: Callable[[], None] = queue.ping,
        tick_s: float = 0.1,
        reconcile_every_s: float = 2.0,
        name: str = "scheduler",
        beat: Path | None = None,
    ) -> None:
        self._book = book
        self._publish = publish
        self._ping = ping
        self._tick_s = tick_s
        self._reconcile_every_s = reconcile_every_s
        self._name = name
        self._beat = beat
        self._reconcile_at = 0.0
        self._queue_away = False

    def run(self, stop: threading.Event) -> None:
        """Tick until `stop` is set; after a failure more slowly, so that an outage is not made worse."""
        pause_s, away = self._tick_s, False
        while not stop.wait(pause_s):
            try:
                self.tick()
            except (BookUnavailable, QueueUnavailable) as error:
                if not away:
                    log.warning("the scheduler waits: %s", error)
                away = True
            except Exception:
                log.exception("the scheduler goes on after an error")
                away = True
            else:
                if away:
                    log.info("the scheduler is at work again")
                away = False
            if self._beat is not None:
                self._beat.touch()
            pause_s = min(2 * pause_s, MAX_PAUSE_S) if away else self._tick_s

    def tick(self) -> None:
        """Mend what is due, then hand out what can be handed out.

        Raises:
            BookUnavailable: the database cannot be reached.
            QueueUnavailable: Redis cannot be reached.
        """
        if time.monotonic() >= self._reconcile_at:
            self._book.scheduler_seen(self._name)
            mended = self._book.reconcile()
            if mended:
                log.info("mended: %s", mended)
            self._reconcile_at = time.monotonic() + self._reconcile_every_s
        if self._queue_away:
            # Asked first, so that an outage costs each job one dispatch that is taken back, and not one at each tick.
            self._ping()
            self._queue_away = False
        self._ring(self._book.dispatch())

    def _ring(self, dispatches: Sequence[Dispatch]) -> None:
        for position, dispatch in enumerate(dispatches):
            try:
                self._publish(dispatch.job_id, dispatch.dispatch_seq, dispatch.pool)
            except QueueUnavailable:
                self._queue_away = True
                # Should this fail too, the reconciliation does it when the dispatch times out.
                for unheard in dispatches[position:]:
                    self._book.withdraw(unheard.job_id, unheard.dispatch_seq)
                raise
            log.info("dispatched job %s, number %d, to pool %s", dispatch.job_id, dispatch.dispatch_seq, dispatch.pool)


def migrate(url: str, stop: threading.Event) -> None:
    """Bring the schema up to date, as soon as the database can be reached.

    Raises:
        SchemaTooNew: a later version has migrated it.
    """
    from worker.migrate import upgrade

    pause_s = 0.1
    while not stop.is_set():
        try:
            upgrade(url)
        except BookUnavailable as error:
            log.warning("the scheduler waits: %s", error)
            stop.wait(pause_s)
            pause_s = min(2 * pause_s, MAX_PAUSE_S)
        else:
            return


def main(config: Settings) -> None:
    """Run until SIGTERM or SIGINT."""
    stop = threading.Event()

    def stopped(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stopped)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        migrate(config.database, stop)
    except SchemaTooNew as error:
        sys.exit(f"the scheduler does not start: {error}")
    book = Book.open(config)
    name = socket.gethostname()
    log.info("the scheduler is at work")
    Scheduler(
        book,
        tick_s=config.scheduler_tick_s,
        reconcile_every_s=config.reconcile_every_s,
        name=name,
        beat=config.beat,
    ).run(stop)
    with suppress(BookUnavailable):
        book.scheduler_gone(name)
    book.close()
    log.info("the scheduler has stopped")


if __name__ == "__main__":
    main(settings())
