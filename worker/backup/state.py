"""The files of a laboratory as one tar: `python -m worker.backup.state`, which says `held` and waits for a line first.

From `held` on, nothing is sent to MLflow and no checkpoint is deleted, until the tar is written: what the databases
say in between, the files hold. Trainings go on meanwhile; what they record waits in the spools.
"""

from __future__ import annotations

import io
import os
import sqlite3
import sys
import tarfile
from contextlib import ExitStack, closing
from pathlib import Path
from typing import BinaryIO

from worker.settings import settings
from worker.standstill import LOCK, copying

JOBS, SPOOL, ARTIFACTS = "jobs", "spool", "mlflow"
FOLDERS = (JOBS, SPOOL, ARTIFACTS)
"""Checkpoints, what MLflow does not have yet, and its artifacts; not logs, not caches."""
UNFINISHED = ".step_"
"""A checkpoint that is being written."""


def write(state: Path, out: BinaryIO) -> None:
    """Write the folders of a state folder that a backup holds.

    Spools are databases that are written to meanwhile: each is copied as of one moment. Files with several names, as
    a checkpoint has that waits in a spool, are in the tar once.
    """
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for name in FOLDERS:
            for folder, folders, files in os.walk(state / name):
                folders[:] = sorted(name for name in folders if not name.startswith(UNFINISHED))
                _add(tar, state, Path(folder))
                for file in sorted(files):
                    _add(tar, state, Path(folder) / file)


def _add(tar: tarfile.TarFile, state: Path, path: Path) -> None:
    name = str(path.relative_to(state))
    try:
        if path.is_dir():
            tar.addfile(tar.gettarinfo(path, name))
        elif path.suffix == ".db" and path.parent == state / SPOOL:
            _add_database(tar, path, name)
        elif path.name != LOCK and path.suffix not in {".db-wal", ".db-shm"}:
            with path.open("rb") as file:
                tar.addfile(tar.gettarinfo(arcname=name, fileobj=file), file)
    except FileNotFoundError:
        pass  # done with since the folder was listed


def _add_database(tar: tarfile.TarFile, path: Path, name: str) -> None:
    # Without its log nobody has it open, and SQLite could not make one where nothing may be written.
    how = "mode=ro" if path.with_suffix(".db-wal").exists() else "immutable=1"
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True)) as spool:
        content = _in_memory(spool).serialize()
    info = tar.gettarinfo(path, name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def _in_memory(source: sqlite3.Connection) -> sqlite3.Connection:
    copy = sqlite3.connect(":memory:")
    source.backup(copy)
    return copy


def main() -> None:
    """Hold still, wait, write, and let go."""
    state = settings().state_dir
    with ExitStack() as held:
        for name in (SPOOL, JOBS):
            held.enter_context(copying(state / name))
        print("held", file=sys.stderr, flush=True)
        if not sys.stdin.readline():
            sys.exit("nothing is written: whoever asked for the tar has gone")
        write(state, sys.stdout.buffer)


if __name__ == "__main__":
    main()
