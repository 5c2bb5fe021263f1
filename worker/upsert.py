"""INSERT with an ON CONFLICT clause, which SQLite and Postgres spell alike and SQLAlchemy keeps in two places."""

from __future__ import annotations

from sqlalchemy import Connection, Table
from sqlalchemy.dialects import postgresql, sqlite


def insert_into(connection: Connection, table: Table) -> sqlite.Insert | postgresql.Insert:
    """The connection's own INSERT, which knows ON CONFLICT."""
    return sqlite.insert(table) if connection.dialect.name == "sqlite" else postgresql.insert(table)


def insert_or_ignore(connection: Connection, table: Table, *unique: str) -> sqlite.Insert | postgresql.Insert:
    """An INSERT that leaves the row alone which is already there under the same unique columns."""
    return insert_into(connection, table).on_conflict_do_nothing(index_elements=list(unique))
