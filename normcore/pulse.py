"""Signs of life of a training that has nothing to tell yet: in the middle of a long reading or evaluation.

Records come out of `normcore.train.train` between two steps. A probe may take as long as thousands of steps, and who
waits for the next record must be able to tell that from a training that hangs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_listener: ContextVar[Callable[[], None] | None] = ContextVar("listener", default=None)


@contextmanager
def heard(by: Callable[[], None]) -> Iterator[None]:
    """A scope in which every pass through a model calls `by`, which must be quick and change nothing.

    Example:
        >>> beats = []
        >>> with heard(lambda: beats.append(1)):
        ...     beat()
        >>> beat()
        >>> len(beats)
        1
    """
    before = _listener.set(by)
    try:
        yield
    finally:
        _listener.reset(before)


def beat() -> None:
    """Tell whoever listens that a pass begins."""
    if (by := _listener.get()) is not None:
        by()
