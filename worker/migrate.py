"""Bringing the order book's schema up to date: `python -m worker.migrate`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text

from worker.database import Database
from worker.settings import settings

MIGRATION_LOCK = 0x6D696772617465
"""Postgres' advisory lock of the one process that migrates."""


def upgrade(url: str, revision: str = "head") -> None:
    """Apply the steps that are missing. Safe when several processes do it at once: one works, the others wait.

    All steps are one transaction: the schema is the new one or the old one, never half of each.

    Raises:
        BookUnavailable: the database cannot be reached.
    """
    _in_one_transaction(url, lambda config: command.upgrade(config, revision))


def downgrade(url: str, revision: str) -> None:
    """Take the steps after `revision` back; `base` is before the first."""
    _in_one_transaction(url, lambda config: command.downgrade(config, revision))


def _in_one_transaction(url: str, work: Callable[[Config], object]) -> None:
    database = Database(url)
    try:
        with database.write() as connection:
            _take_lock(connection)
            config = Config()
            # A percent sign is the configuration's own, so that a folder with one in its name needs two.
            config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
            config.attributes["connection"] = connection
            work(config)
    finally:
        database.close()


def _take_lock(connection: Connection) -> None:
    # On SQLite the transaction itself is the lock: it began with BEGIN IMMEDIATE.
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})


if __name__ == "__main__":
    upgrade(settings().database)
