"""Where one service stands: from waiting through starting to ready, down and up again, and stopped."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import StrEnum
from signal import SIGKILL, SIGTERM

from api.embedded.service import Life, Service, describe

START_TIMEOUT_S = 180.0
FIRST_BACK_OFF_S = 0.5
LONGEST_BACK_OFF_S = 30.0
STEADY_S = 60.0
"""A service that was ready for this long begins its back-off anew."""
KILL_TIMEOUT_S = 5.0
"""A process that lives on for this long after SIGKILL is held by the kernel itself."""


class ServiceFailed(RuntimeError):
    """A service ended, or kept silent, before it was ready for the first time."""


class Phase(StrEnum):
    """Where a service stands."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    DONE = "done"
    DOWN = "down"
    STOPPING = "stopping"
    STOPPED = "stopped"


class Standing:
    """One service, its lives one after another, and the pause between them.

    Args:
        service: What to start.
        live: Starts a life of it.
        on_change: Told of every change of its phase.
    """

    def __init__(
        self, service: Service, live: Callable[[Service], Life], on_change: Callable[[Standing], None]
    ) -> None:
        self.service = service
        self.phase = Phase.WAITING
        self.note = ""
        """What happened, where the phase alone does not say it."""
        self.took_s = 0.0
        """From the start of its latest life until it was ready."""
        self.was_ready = False
        self._live = live
        self._on_change = on_change
        self._life: Life | None = None
        self._ready_at = 0.0
        self._again_at = 0.0
        self._restarts = 0
        self._stop_asked_at = 0.0

    @property
    def pid(self) -> int | None:
        """Its process, while it has one."""
        return None if self._life is None else self._life.pid

    def start(self) -> None:
        """Begin the first life, or the next."""
        self._life = self._live(self.service)
        self._change(Phase.STARTING)

    def step(self) -> None:
        """See what has become of it, and act.

        Raises:
            ServiceFailed: when it did not come up the first time; the message ends with the last lines of its log.
        """
        if self._life is None:
            if self.phase is Phase.DOWN and time.monotonic() >= self._again_at:
                self.start()
            return
        status = self._life.status()
        if self.phase is Phase.STARTING:
            self.took_s = time.monotonic() - self._life.started_at
        if status is not None:
            if status == 0 and self.service.is_ready is None:
                self._life, self.was_ready = None, True
                self._change(Phase.DONE)
            else:
                self._down(self._life, describe(status))
        elif self.phase is Phase.STARTING:
            self._watch_start(self._life)

    def ask_to_stop(self) -> None:
        """SIGTERM, if it lives; `stopped` tells when it has followed."""
        self._stop_asked_at = time.monotonic()
        if self._life is not None:
            self._life.signal(SIGTERM)
            self._change(Phase.STOPPING)

    def stopped(self, *, forced: bool) -> bool:
        """Whether it has stopped; when its grace is over, or at once if forced, it is killed with all its group."""
        if self._life is None:
            return True
        status = self._life.status()
        waited = time.monotonic() - self._stop_asked_at
        if status is None:
            if not forced and waited < self.service.stop_grace_s:
                return False
            self._life.signal_group(SIGKILL)
            return waited > self.service.stop_grace_s + KILL_TIMEOUT_S
        self._life = None
        self._change(Phase.STOPPED, "" if status in (0, -SIGTERM) else describe(status))
        return True

    def _watch_start(self, life: Life) -> None:
        if self.service.is_ready is not None and self.service.is_ready(life):
            self.was_ready, self._ready_at = True, time.monotonic()
            self._change(Phase.READY)
        elif self.took_s > START_TIMEOUT_S:
            life.signal_group(SIGKILL)
            self._down(life, f"not ready after {START_TIMEOUT_S:.0f} s")

    def _down(self, life: Life, cause: str) -> None:
        self._life = None
        if not self.was_ready:
            self._change(Phase.STOPPED, cause)
            raise ServiceFailed(f"{self.service.name} did not start: {cause}; the end of {life.log}:\n{life.tail()}")
        if self.phase is Phase.READY and time.monotonic() - self._ready_at > STEADY_S:
            self._restarts = 0
        pause = min(LONGEST_BACK_OFF_S, FIRST_BACK_OFF_S * 2**self._restarts)
        self._restarts += 1
        self._again_at = time.monotonic() + pause
        self._change(Phase.DOWN, f"{cause}, starting it again in {pause:g} s")

    def _change(self, phase: Phase, note: str = "") -> None:
        self.phase, self.note = phase, note
        self._on_change(self)
