"""The keeper: a process of its own that ends the services when the laboratory cannot, because it was killed.

It learns the process groups over its standard input, `+123` and `-123` a line, and acts when that is closed. It imports
nothing of ours, so that it starts in milliseconds: `python keeper.py GRACE_S`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator

POLL_S = 0.1
GRACE_S = 15.0


class Keeper:
    """The laboratory's end of the line to its keeper."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def guard(self, group: int) -> None:
        """From now on this process group is to be ended with the laboratory."""
        self._tell(f"+{group}\n")

    def dismiss(self, group: int) -> None:
        """This process group has ended."""
        self._tell(f"-{group}\n")

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        # Should the keeper itself be killed, the kernel still passes on the laboratory's death to the services.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line.encode())


@contextlib.contextmanager
def keeper(lock: int) -> Iterator[Keeper]:
    """Start a keeper, which also holds the lock with this descriptor until the last group has ended."""
    with subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, str(GRACE_S)],
        stdin=subprocess.PIPE,
        bufsize=0,
        pass_fds=[lock],
        start_new_session=True,  # what kills the laboratory's whole group shall not kill the keeper
    ) as process:
        yield Keeper(process)


def keep(lines: Iterable[str], grace_s: float) -> None:
    """Remember the groups until the lines end, then end those that are left: by SIGTERM, after a grace by SIGKILL."""
    groups: set[int] = set()
    for line in lines:
        if line.startswith("+"):
            groups.add(int(line[1:]))
        else:
            groups.discard(int(line[1:]))
    deadline = time.monotonic() + grace_s
    groups = _signal(groups, signal.SIGTERM)
    while groups and time.monotonic() < deadline:
        time.sleep(POLL_S)
        groups = _signal(groups, 0)
    _signal(groups, signal.SIGKILL)


def _signal(groups: set[int], number: int) -> set[int]:
    left = set()
    for group in groups:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, number)
            left.add(group)
    return left


if __name__ == "__main__":
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(ignored, signal.SIG_IGN)
    keep(sys.stdin, float(sys.argv[1]))
