"""Where an attempt goes on from: the newest checkpoint that can be trusted."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from worker.checkpoint import CorruptCheckpoint, folder_name, verify
from worker.views import CheckpointRow

PATIENCE_S = 300.0
"""How long MLflow is waited for before a job begins anew, or at an older checkpoint."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0

log = logging.getLogger("normcore.resume")


@dataclass(frozen=True, slots=True)
class Start:
    """A checkpoint to go on from, or none: from scratch, at step 0."""

    path: Path | None = None
    step: int = 0
    passed_over: tuple[str, ...] = ()
    """Why newer checkpoints were not trusted."""


def choose(rows: Sequence[CheckpointRow], fetch: Callable[[CheckpointRow], Path | None]) -> Start:
    """The newest checkpoint whose bytes are what was committed: from this disk, or else from MLflow.

    One that is not on this disk, but in MLflow, may be another machine's, and nothing is to be said of that.

    Args:
        rows: Committed checkpoints, newest first.
        fetch: Brings a checkpoint's files from MLflow; None where they cannot be had.
    """
    passed_over: list[str] = []
    absent: list[CheckpointRow] = []
    for row in rows:
        told = len(passed_over)
        for place in (_on_disk, fetch):
            try:
                path = place(row)
                if path is not None:
                    _trust(row, path)
                    return Start(path, row.step, (*passed_over, *_told(absent)))
            except CorruptCheckpoint as error:
                passed_over.append(str(error))
        if len(passed_over) == told:
            absent.append(row)
    return Start(passed_over=(*passed_over, *_told(absent)))


def _told(absent: Sequence[CheckpointRow]) -> Iterator[str]:
    """One sentence of all checkpoints, newest first, that are neither here nor there: there may be hundreds."""
    if absent:
        newest, oldest = absent[0], absent[-1]
        what = f"checkpoint {folder_name(newest.step)} is"
        if len(absent) > 1:
            what = f"{len(absent)} checkpoints from {folder_name(oldest.step)} to {folder_name(newest.step)} are"
        yield f"{what} neither on this machine's disk nor whole in MLflow"


def choose_in_time(
    rows: Sequence[CheckpointRow],
    fetch: Callable[[CheckpointRow], Path | None],
    *,
    wanted: Callable[[], bool],
    patience_s: float = PATIENCE_S,
) -> Start | None:
    """`choose`, again and again while MLflow is away, since to begin anew would cost more than to wait.

    After the patience it is chosen among what is on this disk.

    Args:
        rows: As above.
        fetch: As above; raises `ConnectionError` while MLflow is away.
        wanted: Whether the attempt is still to be.
        patience_s: How long to wait.

    Returns:
        None where the attempt is not wanted any more.
    """
    give_up_at, pause_s = time.monotonic() + patience_s, FIRST_PAUSE_S
    while True:
        try:
            return choose(rows, fetch)
        except ConnectionError as error:
            log.warning("a checkpoint may be in MLflow, and is waited for: %s", error)
        if not wanted():
            return None
        if time.monotonic() > give_up_at:
            return choose(rows, lambda _: None)
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


def _on_disk(row: CheckpointRow) -> Path | None:
    return None if row.path is None or not Path(row.path).is_dir() else Path(row.path)


def _trust(row: CheckpointRow, path: Path) -> None:
    saved = verify(path)
    if (saved.step, saved.sha256) != (row.step, row.sha256):
        raise CorruptCheckpoint(
            f"checkpoint {path.name} must be what was committed: step {row.step}, sha256 {row.sha256[:12]}, "
            f"got step {saved.step}, {saved.sha256[:12]}; go on from the checkpoint before"
        )


def sweep(folder: Path, rows: Sequence[CheckpointRow]) -> None:
    """Remove from a job's folder what earlier attempts left there and nobody can go on from: the uncommitted.

    Checkpoints are told by attempt and step, not by the whole path: the state folder may have been moved.
    """
    committed = {folder / f"a{row.attempt}" / folder_name(row.step) for row in rows}
    for leftover in (*folder.glob("*/step_*"), *folder.glob("*/.step_*")):
        if leftover not in committed:
            shutil.rmtree(leftover, ignore_errors=True)
