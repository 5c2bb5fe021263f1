"""The clerk: what a running attempt tells the order book, in order, and what it hears from it."""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections import deque
from collections.abc import Iterable
from itertools import islice

from normcore.records import Point, Remark
from worker.book import Book, BookUnavailable
from worker.settings import Settings
from worker.standstill import changing
from worker.states import Desired
from worker.views import MetricPoint, Progress
from worker.wire import Kept

MOST_POINTS = 1000
"""How many points are written in one transaction."""

log = logging.getLogger("normcore.clerk")


class Clerk(threading.Thread):
    """Renews the lease with the progress every heartbeat, and writes points and checkpoints in the order they came.

    A checkpoint is committed when every point before it is in the book, so what a later attempt goes on from lacks
    nothing. The book may be slow or away: that is why this is a thread of its own, and why whoever watches the
    training asks `expired`, which needs nothing but this machine's monotonic clock.
    """

    def __init__(self, book: Book, token: str, settings: Settings, *, claimed_at: float) -> None:
        super().__init__(name="clerk", daemon=True)
        self._book = book
        self._token = token
        self._settings = settings
        self._outbox: deque[Point | Kept | Remark] = deque()
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = False
        # A third of the time to live is kept to end the training in before somebody else may begin it again.
        self._good_for_s = settings.lease_ttl_s * 2 / 3
        self._good_until = claimed_at + self._good_for_s
        self.progress: Progress | None = None
        self.desired = Desired.RUN
        self.fenced = False

    @property
    def expired(self) -> bool:
        """Whether the lease may be lost by now, as far as this machine alone can tell."""
        return time.monotonic() > self._good_until

    def add(self, points: tuple[Point, ...], progress: Progress) -> None:
        """Have points and progress written; the first progress of an attempt at once."""
        first = self.progress is None
        with self._lock:
            self._outbox.extend(points)
        self.progress = progress
        if first:
            self._wake.set()

    def keep(self, kept: Kept) -> None:
        """Have a checkpoint committed, at once but after everything before it."""
        with self._lock:
            self._outbox.append(kept)
        self._wake.set()

    def remark(self, remark: Remark) -> None:
        """Have a remark written, after everything before it."""
        with self._lock:
            self._outbox.append(remark)

    def close(self) -> None:
        """Write what waits and end; `join` to wait for it."""
        self._closing = True
        self._wake.set()

    def run(self) -> None:
        """Renew and write until closed and done, or fenced."""
        while not self.fenced and not (self._closing and not self._outbox):
            self._wake.wait(self._settings.heartbeat_s)
            self._wake.clear()
            try:
                self.fenced = not (self._renew() and self._write())
            except BookUnavailable as error:
                log.warning("%s", error)
                time.sleep(min(self._settings.heartbeat_s, 1.0))

    def _renew(self) -> bool:
        # The lease counts from before the call: the database may have renewed it long before the answer is here.
        asked_at = time.monotonic()
        lease = self._book.renew(self._token, self.progress)
        if lease is None:
            return False
        self._good_until = asked_at + self._good_for_s
        self.desired = lease.desired
        return True

    def _write(self) -> bool:
        due = time.monotonic() + self._settings.heartbeat_s
        # Taken from the outbox only when written: a book that is away gets all of it later.
        while self._outbox:
            if time.monotonic() > due:  # a book slower than the training would keep the lease from being renewed
                self._wake.set()
                break
            with self._lock:
                first = self._outbox[0]
                points = _points_ahead(self._outbox)
            match first:
                case Kept():
                    written = self._commit(first)
                case Remark():
                    written = self._book.remark(self._token, first.step, first.code, first.detail)
                case Point():
                    written = self._book.add_metrics(self._token, points)
            if not written:
                return False
            for _ in points or (first,):
                self._outbox.popleft()
            if isinstance(first, Kept):
                self._make_room()
        return True

    def _commit(self, kept: Kept) -> bool:
        return self._book.commit_checkpoint(
            self._token,
            step=kept.step,
            path=kept.path,
            sha256=kept.sha256,
            size=kept.bytes,
            kind=kept.kind,
            best=kept.best,
        )

    def _make_room(self) -> None:
        """Not while a backup is taken: the next checkpoint makes room for this one too."""
        with changing(self._settings.state_dir / "jobs") as may:
            if not may:
                return
            for row in self._book.retire_checkpoints(self._token, self._settings.keep_checkpoints):
                if row.path is not None:
                    shutil.rmtree(row.path, ignore_errors=True)


def _points_ahead(outbox: Iterable[Point | Kept | Remark]) -> list[MetricPoint]:
    """The points before the first checkpoint or remark, as many as are written at once."""
    points = []
    for item in islice(outbox, MOST_POINTS):
        if not isinstance(item, Point):
            break
        points.append(MetricPoint(*item))
    return points
