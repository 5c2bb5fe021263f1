"""The supervisor: starts the services in their order, looks after them, and stops all of it, in one thread."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from api.embedded.keeper import keeper
from api.embedded.service import Life, Service
from api.embedded.signals import Stop, StopSignals
from api.embedded.standing import Phase, Standing

TICK_S = 0.1
CALM_TICK_S = 1.0
"""When nothing is on its way; a death ends the sleep anyway."""


class Supervisor:
    """All services of a laboratory, and the thread that looks after them. `supervise` makes one and stops it.

    Args:
        standings: The services, in the order in which people read them.
        signals: Where requests to stop come from.
        on_tick: Called some times a second while something is on its way.
    """

    def __init__(self, standings: Sequence[Standing], signals: StopSignals, on_tick: Callable[[], None]) -> None:
        self.standings = standings
        self._signals = signals
        self._on_tick = on_tick

    @property
    def ready(self) -> bool:
        """Whether every service is up and every task is done."""
        return all(standing.phase in (Phase.READY, Phase.DONE) for standing in self.standings)

    def wait_until_ready(self) -> None:
        """Start everything; return when all of it is ready.

        Raises:
            ServiceFailed: when one cannot be started; the message ends with the last lines of its log.
            Stop: when a signal asks to stop.
        """
        while not self.ready:
            self.attend(TICK_S)

    def attend(self, seconds: float = math.inf) -> None:
        """Look after the services for a while, or for good: this is how a laboratory sleeps.

        Raises:
            ServiceFailed: when one cannot be started.
            Stop: when a signal asks to stop.
        """
        deadline = time.monotonic() + seconds
        while self._signals.asked is None:
            self._step()
            left = deadline - time.monotonic()
            if left <= 0:
                return
            self._signals.wait(min(left, CALM_TICK_S if self.ready else TICK_S))
        raise Stop(self._signals.asked.name)

    def stop(self) -> None:
        """Stop everything, round by round; what outlasts its grace, or everything when forced, is killed."""
        for number in sorted({standing.service.stop_round for standing in self.standings}):
            running = [standing for standing in self.standings if standing.service.stop_round == number]
            for standing in running:
                standing.ask_to_stop()
            while running := [s for s in running if not s.stopped(forced=self._signals.forced)]:
                self._on_tick()
                self._signals.wait(TICK_S)

    def _step(self) -> None:
        ready = {standing.service.name for standing in self.standings if standing.was_ready}
        for standing in self.standings:
            if standing.phase is Phase.WAITING and ready.issuperset(standing.service.after):
                standing.start()
            standing.step()
        self._on_tick()


@contextmanager
def supervise(
    services: Sequence[Service],
    *,
    environment: Mapping[str, str],
    log_dir: Path,
    lock: int,
    signals: StopSignals,
    on_change: Callable[[Standing], None],
    on_tick: Callable[[], None],
) -> Iterator[Supervisor]:
    """A supervisor whose services are stopped when the block is left, however it is left.

    Args:
        services: What to run.
        environment: The services' environment; each may have variables of its own besides.
        log_dir: Where each service has its log.
        lock: The descriptor of the state folder's lock; the keeper holds it until the last service has ended.
        signals: Where requests to stop come from.
        on_change: Told of every change of a service's phase.
        on_tick: Called some times a second while something is on its way.
    """
    log_dir.mkdir(parents=True, exist_ok=True)
    with keeper(lock) as guardian:

        def live(service: Service) -> Life:
            return Life(service, environment, log_dir / f"{service.name}.log", guardian)

        supervisor = Supervisor([Standing(service, live, on_change) for service in services], signals, on_tick)
        try:
            yield supervisor
        finally:
            supervisor.stop()
