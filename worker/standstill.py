"""A folder that is being copied: while it is, nothing is deleted from it, and nothing is sent away.

The lock is the kernel's, on `.lock` in the folder, and ends with the process that holds it.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = ".lock"


@contextmanager
def changing(folder: Path) -> Iterator[bool]:
    """Whether files may be deleted from a folder now; a copy of it waits meanwhile.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with changing(folder) as first, changing(folder) as second:
        ...     first, second
        (True, True)
        >>> with copying(folder), changing(folder) as may:
        ...     may
        False
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


@contextmanager
def copying(folder: Path) -> Iterator[None]:
    """Wait for whoever changes a folder, and have it stand still. It may be one that cannot be written to."""
    if not (folder / LOCK).exists():  # nobody has ever worked in it
        yield
        return
    with (folder / LOCK).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
