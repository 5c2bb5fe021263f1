"""How a trainer says with its exit code why it ended, and what that means for its job."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from enum import IntEnum

from normcore.records import Diverged, Finished
from worker.states import Event
from worker.views import Reason
from worker.wire import Failed, Message


class Exit(IntEnum):
    """Exit codes of `worker.trainer`; 64 and above as in BSD's sysexits where they fit."""

    DONE = 0
    SPEC = 64
    """The spec cannot be trained here: no other try would help."""
    DIVERGED = 65
    EXCEPTION = 70
    """The training raised an exception."""
    OUT_OF_MEMORY = 71
    DEVICE = 72
    """The device or its driver failed."""
    IO = 74
    """A file could not be read or written."""
    STOPPED = 75
    """Stopped when asked to, after a checkpoint."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How an attempt ended: what the order book is told."""

    event: Event
    reason: Reason | None = None


_FAILURES = {Exit.SPEC, Exit.EXCEPTION, Exit.OUT_OF_MEMORY}


def ending_of(code: int, last: Message | None, *, kernel_killed: bool = False) -> Ending:
    """What an exit code (negative: a signal, as `subprocess` has it) and the last message mean together.

    A result needs both: an exit code alone may come from anywhere. Whoever stops needs only say so. `kernel_killed`
    says that the kernel has killed for want of memory meanwhile.

    Example:
        >>> ending_of(-9, None).reason.detail
        'a training must end by itself, got SIGKILL; it is tried again from its last checkpoint'
    """
    if code == Exit.DONE and isinstance(last, Finished):
        return Ending(Event.SUCCEEDED)
    if code == Exit.DIVERGED and isinstance(last, Diverged):
        where = f" (first in {last.layer})" if last.layer else ""
        detail = f"the loss must stay finite, got {last.loss} at step {last.step}{where}; lower the lr or add a norm"
        return Ending(Event.DIVERGED, Reason("diverged", detail))
    if code == Exit.STOPPED:
        return Ending(Event.RELEASED)
    if isinstance(last, Failed):
        return Ending(Event.FAILED if code in _FAILURES else Event.LOST, Reason(last.code, last.detail))
    if code == -signal.SIGKILL and kernel_killed:
        detail = "a training must fit into the host's memory, got killed by the kernel for want of it; lower batch_size"
        return Ending(Event.LOST, Reason("host-out-of-memory", detail))
    got = signal.Signals(-code).name if code < 0 else f"exit code {code} without a result"
    detail = f"a training must end by itself, got {got}; it is tried again from its last checkpoint"
    return Ending(Event.LOST, Reason("trainer-lost", detail))
