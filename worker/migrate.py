"""Bringing the order book's schema up to date, `python -m worker.migrate`, or to a revision, forward or back.

`python -m worker.migrate 0002` is for going back to an earlier version: stop everything but the database, take the
steps back with the later version, start the earlier one. What only later revisions can hold is lost.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, inspect, text

from worker import schema
from worker.database import BookUnavailable, Database
from worker.settings import settings

MIGRATION_LOCK = 0x6D696772617465
"""Postgres' advisory lock of the one process that migrates."""


def upgrade(url: str, revision: str = "head") -> None:
    """Apply the steps that are missing. Safe when several processes do it at once: one works, the others wait.

    All steps are one transaction: the schema is the new one or the old one, never half of each.

    Raises:
        BookUnavailable: the database cannot be reached.
        SchemaTooNew: a later version has migrated it.
    """
    _in_one_transaction(url, lambda config, _: command.upgrade(config, revision))


def downgrade(url: str, revision: str) -> None:
    """Take the steps after `revision` back; `base` is before the first, with no tables and no jobs.

    Raises:
        BookUnavailable: the database cannot be reached.
        SchemaTooNew: a later version has migrated it.
    """
    _in_one_transaction(url, lambda config, _: command.downgrade(config, revision))


def move(url: str, revision: str) -> None:
    """Bring the schema to a revision, forward or back.

    Raises:
        BookUnavailable: the database cannot be reached.
        SchemaTooNew: a later version has migrated it.
        ValueError: there is no such revision.
    """
    if revision not in schema.known():
        known = ", ".join(schema.known())
        raise ValueError(f"the order book's schema has the revisions {known}, got {revision!r}; choose one of them")

    def work(config: Config, found: str | None) -> None:
        forward = found is None or found < revision
        (command.upgrade if forward else command.downgrade)(config, revision)

    _in_one_transaction(url, work)


def _in_one_transaction(url: str, work: Callable[[Config, str | None], object]) -> None:
    database = Database(url)
    try:
        with database.write() as connection:
            _take_lock(connection)
            found = schema.current(connection) if inspect(connection).has_table("alembic_version") else None
            schema.require_known(found)
            config = Config()
            # A percent sign is the configuration's own, so that a folder with one in its name needs two.
            config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
            config.attributes["connection"] = connection
            work(config, found)
    finally:
        database.close()


def _take_lock(connection: Connection) -> None:
    # On SQLite the transaction itself is the lock: it began with BEGIN IMMEDIATE.
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})


def main(arguments: Sequence[str]) -> None:
    """Migrate the order book that the settings name, to a revision or to the newest."""
    if len(arguments) > 1:
        sys.exit(f"migrate takes one revision at most, got {' '.join(arguments)}")
    try:
        move(settings().database, *(arguments or schema.known()[-1:]))
    except (BookUnavailable, schema.SchemaTooNew, ValueError) as error:
        sys.exit(f"nothing is migrated: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
