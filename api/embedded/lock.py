"""One laboratory per state folder: a lock that the kernel releases, however its holder ends."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAME = "up.lock"
POLL_S = 0.1


class StateFolderTaken(RuntimeError):
    """Another laboratory lives in this state folder."""


@contextmanager
def state_folder(path: Path, *, patience_s: float = 30.0) -> Iterator[int]:
    """Hold a state folder, made if need be; yields the descriptor of its lock.

    Whoever inherits the descriptor holds the lock too. So the folder stays taken after its laboratory was killed, until
    the keeper has ended the last service; for that the next laboratory waits up to `patience_s` seconds.

    Raises:
        StateFolderTaken: when a laboratory that is alive holds it; the message names its process.
        OSError: when the folder cannot be made or written.
    """
    path.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path / NAME, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _take(descriptor, path, time.monotonic() + patience_s)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def _take(descriptor: int, path: Path, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(descriptor)
            if _lives(holder) or time.monotonic() > deadline:
                raise StateFolderTaken(
                    f"the state folder {path.absolute()} already has a laboratory, process {holder}; use that one, "
                    f"stop it with `kill {holder}`, or give this one a folder of its own: "
                    "NORMCORE_STATE_DIR=var2 NORMCORE_API_PORT=8001 NORMCORE_MLFLOW_PORT=5001 normcore up"
                ) from None
            time.sleep(POLL_S)
        else:
            return


def _holder(descriptor: int) -> int:
    written = os.pread(descriptor, 32, 0)
    return int(written) if written.isdigit() else 0


def _lives(pid: int) -> bool:
    # A lock without a number is one that was taken a moment ago.
    if pid == 0:
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
