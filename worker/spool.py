"""The durable spool between an attempt and MLflow: what was recorded and is not yet known to have arrived.

One SQLite file per attempt, `<job_id>.a<attempt>.db`, and beside it a folder of hard links to the artifacts that wait,
so that the originals may be deleted meanwhile. The supervisor writes, the recorder sends, each through its own
connection; whatever was added survives the death of either.

Every point keeps the timestamp of its first insertion, so that sending it again is byte-identical and stored once.
"""

from __future__ import annotations

import math
import shutil
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from normcore.records import Point

_TABLES = """
CREATE TABLE IF NOT EXISTS facts (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS points (
    key TEXT NOT NULL, step INTEGER NOT NULL, value REAL NOT NULL, at_ms INTEGER NOT NULL, PRIMARY KEY (key, step)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS points_by_step ON points (step);
CREATE TABLE IF NOT EXISTS watermarks (key TEXT PRIMARY KEY, step INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tags (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS artifacts (
    id INTEGER PRIMARY KEY AUTOINCREMENT, path TEXT NOT NULL UNIQUE, step INTEGER NOT NULL
);
"""
_ADD = """
INSERT OR IGNORE INTO points SELECT :key, :step, :value, :at_ms
WHERE NOT EXISTS (SELECT 1 FROM watermarks WHERE key = :key AND step >= :step)
"""
_RAISE_WATERMARK = """
INSERT INTO watermarks VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET step = max(step, excluded.step)
"""
_BUSY_TIMEOUT_S = 20.0
_LAST_STEP = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Entry:
    """A point and when it was first recorded, in milliseconds since 1970."""

    key: str
    step: int
    value: float
    at_ms: int


@dataclass(frozen=True, slots=True)
class Artifact:
    """A file that waits to be sent to `path` of the run. `id` tells it from an older file of the same path."""

    id: int
    path: str
    step: int
    file: Path


def finite(point: Point) -> Point:
    """The point itself, or where its value is not finite the point that says so: MLflow must not see infinities.

    Example:
        >>> finite(Point("train/loss", 3, math.inf))
        Point(key='train/loss_nonfinite', step=3, value=1.0)
    """
    return point if math.isfinite(point.value) else Point(f"{point.key}_nonfinite", point.step, 1.0)


class Spool:
    """An attempt's spool; use it from one thread at a time.

    Example:
        >>> import tempfile
        >>> spool = Spool.create(Path(tempfile.mkdtemp()), job_id="j", attempt=1)
        >>> spool.add([Point("train/loss", 1, 2.5), Point("train/loss", 1, 9.9)])
        >>> [(entry.key, entry.step, entry.value) for entry in spool.batch()]
        [('train/loss', 1, 2.5)]
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files = path.with_suffix(".files")
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=_BUSY_TIMEOUT_S)
        # NORMAL: a commit survives the death of any process; only a power cut may take the newest ones.
        self._connection.executescript(f"PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; {_TABLES}")

    @classmethod
    def create(cls, folder: Path, *, job_id: str, attempt: int) -> Self:
        """The spool of an attempt, made where it is missing."""
        folder.mkdir(parents=True, exist_ok=True)
        return cls(folder / f"{job_id}.a{attempt}.db")

    @classmethod
    def begin(cls, folder: Path, *, job_id: str, attempt: int, worker: str) -> Self:
        """The spool of an attempt that a worker has just claimed, with nothing in it.

        One that is there already is of an attempt of the same number that a restored order book knows nothing of.
        """
        _remove(folder / f"{job_id}.a{attempt}.db")
        spool = cls.create(folder, job_id=job_id, attempt=attempt)
        spool.note(worker=worker)
        return spool

    @staticmethod
    def paths(folder: Path) -> list[Path]:
        """The spools of a folder, also those that earlier lives of the worker left; a job's by attempt."""
        return sorted(folder.glob("*.a*.db"), key=_parts)

    def note(self, **facts: str) -> None:
        """Remember facts about the attempt and its run."""
        with self._write() as connection:
            connection.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", facts.items())

    def fact(self, key: str) -> str | None:
        """A fact, where it is known."""
        row = self._connection.execute("SELECT value FROM facts WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def add(self, points: Iterable[Point]) -> None:
        """Record points. A (key, step) that is here already, or that the run is known to hold, is left as it is."""
        at_ms = int(time.time() * 1000)
        rows = [{"key": p.key, "step": p.step, "value": p.value, "at_ms": at_ms} for p in map(finite, points)]
        with self._write() as connection:
            connection.executemany(_ADD, rows)

    def tag(self, tags: Mapping[str, str]) -> None:
        """Record tags; the newest value of a key is sent."""
        with self._write() as connection:
            connection.executemany("INSERT OR REPLACE INTO tags VALUES (?, ?)", tags.items())

    def enqueue(self, path: str, file: Path, *, step: int) -> None:
        """Have a file sent to `path` of the run. The file must not be written again; it may be deleted."""
        with self._write() as connection:
            insert = "INSERT OR REPLACE INTO artifacts (path, step) VALUES (?, ?)"
            held = self._held(int(connection.execute(insert, (path, step)).lastrowid or 0), path)
            held.parent.mkdir(parents=True, exist_ok=True)
            held.unlink(missing_ok=True)  # of a life that ended right here: a copy must not write through its link
            try:
                held.hardlink_to(file)
            except OSError:  # a file system without hard links, or another one than the spool's
                shutil.copyfile(file, held)

    @property
    def job_id(self) -> str:
        """The job whose attempt it is."""
        return _parts(self.path)[0]

    @property
    def attempt(self) -> int:
        """The attempt's number."""
        return _parts(self.path)[1]

    @property
    def seeded(self) -> bool:
        """Whether it is known what earlier attempts sent, so that sending may begin."""
        return self.fact("seeded") is not None

    def seed(self, watermarks: Mapping[str, int], missing: Iterable[Point] = ()) -> None:
        """Take up where earlier attempts ended.

        Args:
            watermarks: The highest step of each key that the run holds: up to there everything is sent already.
            missing: What earlier attempts measured and the run does not hold. It is sent with this attempt's own.
        """
        at_ms = int(time.time() * 1000)
        rows = [{"key": p.key, "step": p.step, "value": p.value, "at_ms": at_ms} for p in missing]
        with self._write() as connection:
            connection.executemany(_RAISE_WATERMARK, watermarks.items())
            connection.executemany("DELETE FROM points WHERE key = ? AND step <= ?", watermarks.items())
            connection.executemany(_ADD, rows)
            connection.execute("INSERT OR REPLACE INTO facts VALUES ('seeded', '1')")

    def batch(self, limit: int = 1000, *, up_to: int | None = None) -> list[Entry]:
        """The next points to send, no later than a step.

        They come in the order of steps, so that what the run holds of a key is always all up to a step.
        """
        query = "SELECT key, step, value, at_ms FROM points WHERE step <= ? ORDER BY step LIMIT ?"
        return [Entry(*row) for row in self._connection.execute(query, (_no_later(up_to), limit))]

    def first_step(self) -> int | None:
        """The lowest step of which a point still waits; None where none does."""
        (step,) = self._connection.execute("SELECT min(step) FROM points").fetchone()
        return None if step is None else int(step)

    def drop_points(self) -> None:
        """Forget all points that wait: somebody else sends them."""
        with self._write() as connection:
            connection.execute("DELETE FROM points")

    def sent(self, entries: Iterable[Entry]) -> None:
        """Forget points that have arrived, but not that they have."""
        pairs = [(entry.key, entry.step) for entry in entries]
        highest: dict[str, int] = {}
        for key, step in pairs:
            highest[key] = max(step, highest.get(key, step))
        with self._write() as connection:
            connection.executemany(_RAISE_WATERMARK, highest.items())
            connection.executemany("DELETE FROM points WHERE key = ? AND step = ?", pairs)

    def tags(self) -> dict[str, str]:
        """The tags to send."""
        return dict(self._connection.execute("SELECT key, value FROM tags ORDER BY key"))

    def tags_sent(self, tags: Mapping[str, str]) -> None:
        """Forget tags that have arrived with these values."""
        with self._write() as connection:
            connection.executemany("DELETE FROM tags WHERE key = ? AND value = ?", tags.items())

    def artifacts(self, *, up_to: int | None = None) -> list[Artifact]:
        """The files to send, no later than a step, in the order they came."""
        query = "SELECT id, path, step FROM artifacts WHERE step <= ? ORDER BY id"
        rows = self._connection.execute(query, (_no_later(up_to),)).fetchall()
        return [Artifact(id_, path, step, self._held(id_, path)) for id_, path, step in rows]

    def artifact_sent(self, artifact: Artifact) -> None:
        """Forget a file that has arrived; a newer one of its path goes on waiting."""
        with self._write() as connection:
            connection.execute("DELETE FROM artifacts WHERE id = ?", (artifact.id,))
        artifact.file.unlink(missing_ok=True)

    def empty(self, *, up_to: int | None = None) -> bool:
        """Whether nothing waits that may be sent."""
        return not (self.batch(1, up_to=up_to) or self.tags() or self.artifacts(up_to=up_to))

    def close(self) -> None:
        """Close the connection; the file stays."""
        self._connection.close()

    def delete(self) -> None:
        """Close the connection and remove the file and what was held beside it."""
        self.close()
        _remove(self.path)

    def _held(self, id_: int, path: str) -> Path:
        return self._files / str(id_) / path

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield self._connection
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")


def _remove(path: Path) -> None:
    shutil.rmtree(path.with_suffix(".files"), ignore_errors=True)
    for suffix in (".db-wal", ".db-shm", ".db"):
        with suppress(FileNotFoundError):
            path.with_suffix(suffix).unlink()


def _parts(path: Path) -> tuple[str, int]:
    """The job and the attempt that a spool's name says."""
    job_id, _, attempt = path.stem.rpartition(".a")
    return job_id, int(attempt)


def _no_later(step: int | None) -> int:
    return _LAST_STEP if step is None else step
