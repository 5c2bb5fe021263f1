"""The connection to the order book's database: SQLite or Postgres, and what a transaction is on each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import InterfaceError, OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

BUSY_TIMEOUT_MS = 20_000
"""How long a writer waits for another one in SQLite."""

UNDEFINED_TABLE = "42P01"
"""What Postgres answers before the migrations were applied."""


class BookUnavailable(ConnectionError):
    """The database cannot be reached or is not set up; try again later."""


class Database:
    """A pool of connections and the two kinds of transactions: reading and writing.

    On SQLite a writing transaction begins with BEGIN IMMEDIATE, so that it waits for its turn at the beginning and
    never fails half-way; on Postgres it is READ COMMITTED, and compare-and-set statements lock the rows they change.

    Example:
        >>> from sqlalchemy import text
        >>> with Database("sqlite://").read() as connection:
        ...     connection.scalar(text("SELECT 1"))
        1
    """

    def __init__(self, url: str) -> None:
        self.url = _normalized(url)
        self.dialect = self.url.get_backend_name()
        self.engine = _sqlite_engine(self.url) if self.dialect == "sqlite" else _postgres_engine(self.url)
        self._writer = self.engine.execution_options(normcore_begin="BEGIN IMMEDIATE")

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that changes nothing.

        Raises:
            BookUnavailable: the database cannot be reached.
        """
        with _mapped_errors(self.url), self.engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that is committed at the end, or rolled back when an exception leaves it.

        Raises:
            BookUnavailable: the database cannot be reached; whether the commit was done is then unknown.
        """
        with _mapped_errors(self.url), self._writer.connect() as connection, connection.begin():
            yield connection

    def close(self) -> None:
        """Close the pooled connections."""
        self.engine.dispose()


@contextmanager
def _mapped_errors(url: URL) -> Iterator[None]:
    try:
        yield
    except (OperationalError, InterfaceError, PoolTimeoutError, ProgrammingError) as error:
        if isinstance(error, ProgrammingError) and getattr(error.orig, "sqlstate", None) != UNDEFINED_TABLE:
            raise
        reason = str(getattr(error, "orig", None) or error).strip()
        raise BookUnavailable(
            f"the order book must answer, got {reason!r} from {url.render_as_string(hide_password=True)}; "
            "check that the database runs and that its migrations were applied"
        ) from error


def _normalized(url: str) -> URL:
    parsed = make_url(url)
    if parsed.drivername in {"postgres", "postgresql"}:
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.drivername not in {"sqlite", "sqlite+pysqlite", "postgresql+psycopg"}:
        raise ValueError(
            f"the order book lives in SQLite or Postgres, got {parsed.drivername!r}; "
            "set NORMCORE_DATABASE_URL to sqlite:///<path> or postgresql://<user>:<password>@<host>/<database>"
        )
    return parsed


def _sqlite_engine(url: URL) -> Engine:
    if url.database and url.database != ":memory:":
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url)

    @event.listens_for(engine, "connect")
    def connected(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the "begin" listener below begins, not the driver
        for pragma in (
            f"busy_timeout = {BUSY_TIMEOUT_MS}",
            "journal_mode = WAL",
            "synchronous = NORMAL",  # a commit survives the death of any process; the WAL is synced at checkpoints
            "foreign_keys = ON",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get("normcore_begin", "BEGIN"))

    return engine


def _postgres_engine(url: URL) -> Engine:
    return create_engine(url, pool_pre_ping=True, pool_timeout=10, connect_args={"connect_timeout": 5})
