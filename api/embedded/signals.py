"""The signals that ask a laboratory to stop, turned into facts that its one thread reads."""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import time
from types import FrameType, TracebackType
from typing import Any, Self

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
SAME_PRESS_S = 0.5
"""Wrappers such as make pass on the Ctrl-C that the terminal has sent already: within this time it is the same one."""


class Stop(Exception):
    """A signal, which is named, asked the laboratory to stop."""


class StopSignals:
    """While entered, the first SIGINT, SIGTERM or SIGHUP is `asked`, a second sets `forced`; any of them ends a `wait`.

    SIGCHLD ends a wait too, so that a service that died is seen at once. Enter it in the main thread.
    """

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self.forced = False
        self._asked_at = 0.0
        self._before: dict[int, Any] = {}
        self._wakeup_before = -1
        self._ear, self._bell = socket.socketpair()

    def __enter__(self) -> Self:
        self._ear.setblocking(False)
        self._bell.setblocking(False)
        self._wakeup_before = signal.set_wakeup_fd(self._bell.fileno(), warn_on_full_buffer=False)
        for number in STOPS:
            # nohup and shells that run us in the background have their reasons to ignore a hang-up.
            if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._stop)
        self._before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, _ring)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup_before)
        self._ear.close()
        self._bell.close()

    def wait(self, seconds: float) -> None:
        """Sleep until a signal comes, or for so long."""
        if select.select([self._ear], [], [], seconds)[0]:
            with contextlib.suppress(BlockingIOError):
                while self._ear.recv(64):
                    pass

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        if self.asked is None:
            self.asked, self._asked_at = signal.Signals(number), time.monotonic()
        elif time.monotonic() - self._asked_at > SAME_PRESS_S:
            self.forced = True


def _ring(_number: int, _frame: FrameType | None) -> None:
    """Python writes to the wake-up descriptor only for signals that have a handler."""
