"""The nursery: one trainer kept warm, so that a claimed job begins at once instead of importing torch first."""

from __future__ import annotations

import logging
import queue
import threading
import time

from worker.child import Child
from worker.settings import Settings

WARM_UP_S = 300.0
"""How long a trainer may take to become warm, on a slow disk too."""
MAX_BACKOFF_S = 30.0

log = logging.getLogger("normcore.nursery")


class Nursery(threading.Thread):
    """Spawns trainers, one ahead. It is a thread of its own because trainers die with the thread that spawned them.

    The next one is spawned when `replenish` is called: after the first step of a job, so that its imports do not
    slow that first step down, and at the job's end at the latest.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(name="nursery", daemon=True)
        self._settings = settings
        self._warm: queue.Queue[Child] = queue.Queue()
        self._wanted = threading.Event()
        self._wanted.set()
        self._closing = threading.Event()
        self._warming: Child | None = None

    def run(self) -> None:
        """Spawn whenever one is wanted."""
        backoff_s = 1.0
        while not self._closing.is_set():
            self._wanted.wait()
            self._wanted.clear()
            if self._closing.is_set() or not self._warm.empty():
                continue
            child = self._warming = Child(self._settings)
            ready = child.await_ready(WARM_UP_S)
            self._warming = None
            if ready is not None:
                backoff_s = 1.0
                self.give_back(child)
                continue
            child.close()
            if not self._closing.is_set():
                log.error("a trainer did not become warm; the next try is in %g s", backoff_s)
            self._closing.wait(backoff_s)
            backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)
            self._wanted.set()
        while not self._warm.empty():
            self._warm.get_nowait().close()

    def replenish(self) -> None:
        """Have a trainer kept warm, unless there is one."""
        self._wanted.set()

    def take(self, timeout_s: float) -> Child | None:
        """A warm trainer, waiting for one where there is none; None when it takes too long."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                child = self._warm.get_nowait()
            except queue.Empty:
                self.replenish()
                try:
                    child = self._warm.get(timeout=max(0.0, deadline - time.monotonic()))
                except queue.Empty:
                    return None
            if child.alive():
                return child
            child.close()

    def give_back(self, child: Child) -> None:
        """Keep a warm trainer, as one that was taken and got no order after all."""
        self._warm.put(child)

    def close(self) -> None:
        """End: no more trainers, and the warm one goes. Those that were taken must have ended before."""
        self._closing.set()
        self._wanted.set()
        if (warming := self._warming) is not None:
            warming.kill()
        if self.is_alive():
            self.join()
