"""A worker's presence in the order book: jobs are only handed to workers that are seen."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from worker.book import Book, BookUnavailable
from worker.pools import Pool

log = logging.getLogger("normcore.presence")


class Presence(threading.Thread):
    """Makes known every heartbeat that a worker lives, until it is to end, and then that it is gone.

    Args:
        book: The order book.
        name: The worker's.
        device: What it computes on.
        pool: How much of that there is.
        heartbeat_s: Seconds between its words.
        draining: Set when the worker is to end.
        beat: A file that is touched whenever the order book has heard of the worker: one that is old says that it
            cannot be handed jobs.
    """

    def __init__(
        self,
        book: Book,
        name: str,
        device: str,
        pool: Pool,
        *,
        heartbeat_s: float,
        draining: threading.Event,
        beat: Path | None = None,
    ) -> None:
        super().__init__(name="presence", daemon=True)
        self._book = book
        self._worker = name
        self._device = device
        self._uses = {"gpus": pool.gpus, "processes": pool.processes}
        self._heartbeat_s = heartbeat_s
        self._draining = draining
        self._beat = beat

    def announce(self) -> None:
        """The first word, before any message is taken: what an earlier life of the same name held is lost by now.

        Raises:
            SchemaTooNew: a later version has migrated the order book.
        """
        while not self._draining.is_set():
            try:
                self._book.require_schema()
                if lost := self._book.worker_started(self._worker, self._device, **self._uses):
                    log.info("jobs of an earlier life are queued again: %s", ", ".join(lost))
            except BookUnavailable as error:
                log.warning("the worker waits: %s", error)
                self._draining.wait(self._heartbeat_s)
            else:
                self._heard()
                return

    def run(self) -> None:
        """Every heartbeat, until the worker is to end."""
        while not self._draining.wait(self._heartbeat_s):
            self._tell(lambda: self._book.worker_seen(self._worker, self._device, **self._uses))
        self._tell(lambda: self._book.worker_gone(self._worker))

    def _tell(self, word: Callable[[], None]) -> None:
        try:
            word()
        except BookUnavailable as error:
            log.warning("%s", error)
        else:
            self._heard()

    def _heard(self) -> None:
        if self._beat is not None:
            self._beat.touch()
