"""A service of the laboratory and one life of it: a process with a group, a log and a keeper of its own."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL, SIGTERM, Signals

from api.embedded.keeper import Keeper

PR_SET_PDEATHSIG = 1
LARGEST_LOG_BYTES = 5_000_000
"""A log that is larger when a life begins is put aside."""
LONGEST_TAIL_BYTES = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What to start, when, and how to tell that it is ready."""

    name: str
    command: tuple[str, ...]
    is_ready: Callable[[Life], bool] | None = None
    """Asked of its present life; None for a task, such as the migrations, which is ready when it has ended well."""
    after: tuple[str, ...] = ()
    """Services that must be ready before this one is started."""
    stop_round: int = 0
    """Services of a lower round are stopped first."""
    stop_grace_s: float = 10.0
    """How long it may take to stop before it is killed."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """What only this service's environment has."""


class Life:
    """A running process of a service. It leads its own group, so that a terminal's Ctrl-C does not reach it.

    Args:
        service: What to start.
        environment: What its environment has besides its own variables.
        log: The file that takes its output; appended to.
        keeper: Who ends it when we cannot.
    """

    def __init__(self, service: Service, environment: Mapping[str, str], log: Path, keeper: Keeper) -> None:
        self.service = service
        self.started_at = time.monotonic()
        self.log = log
        self._keeper = keeper
        if log.exists() and log.stat().st_size > LARGEST_LOG_BYTES:
            log.replace(log.with_suffix(".log.1"))
        with log.open("ab") as output:
            self._log_start = output.tell()
            self._process = subprocess.Popen(
                service.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environment) | dict(service.environment),
                start_new_session=True,
                preexec_fn=_die_with_parent(os.getpid()),  # noqa: PLW1509 - it takes no lock
            )
        keeper.guard(self.pid)

    @property
    def pid(self) -> int:
        """The process, which is also its group's number."""
        return self._process.pid

    def status(self) -> int | None:
        """None while it runs, then its exit status, negative for a signal; what it left of its group is killed."""
        if self._process.returncode is None:
            # While the leader is unreaped, no other group can have its number.
            if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                return None
            self.signal_group(SIGKILL)
            self._process.wait()
            self._keeper.dismiss(self.pid)
        return self._process.returncode

    def signal(self, number: Signals) -> None:
        """Signal the process alone: what it started is its own to stop."""
        os.kill(self.pid, number)

    def signal_group(self, number: Signals) -> None:
        """Signal the process and everything it started."""
        with contextlib.suppress(PermissionError):  # what macOS says of a group of which only the dead are left
            os.killpg(self.pid, number)

    def tail(self, lines: int = 15) -> str:
        """The last lines it has logged in this life."""
        with self.log.open("rb") as log:
            log.seek(max(self._log_start, log.seek(0, os.SEEK_END) - LONGEST_TAIL_BYTES))
            return "\n".join(log.read().decode(errors="replace").splitlines()[-lines:])


def _die_with_parent(parent: int) -> Callable[[], None] | None:
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl

    def ask() -> None:
        prctl(PR_SET_PDEATHSIG, SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    return ask


def describe(status: int) -> str:
    """An exit status in words.

    Example:
        >>> describe(-9), describe(3)
        ('killed by SIGKILL', 'exit status 3')
    """
    return f"killed by {Signals(-status).name}" if status < 0 else f"exit status {status}"
