"""Every step of the schema, forward and back, on full tables: nothing is lost that both revisions can hold."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import JSON, Boolean, Connection, Float, Integer, MetaData, Table, insert, inspect, select

from worker import migrate, schema
from worker.database import Database
from worker.states import TERMINAL, Desired, State
from worker.tables import metadata as newest

Rows = dict[str, dict[tuple[Any, ...], dict[str, Any]]]

STATES = list(itertools.product(State, Desired))


def test_nothing_is_lost_on_the_way_back_and_forward_again(empty_url: str) -> None:
    """The tables are filled at the newest revision and at each one on the way back to the first."""
    migrate.move(empty_url, schema.known()[-1])
    with closing(Database(empty_url)) as database:
        fill(database, "at the newest")
        for revision in reversed(schema.known()[:-1]):
            before = everything(database)
            migrate.move(empty_url, revision)
            assert_kept(before, everything(database))
            fill(database, f"at {revision}")
        first = everything(database).keys()
        for revision in schema.known()[1:]:
            before = everything(database)
            migrate.move(empty_url, revision)
            assert_kept(before, everything(database))
        for table, rows in everything(database).items():
            # A job is of each time that its table was filled at, and a later table's rows went as the table went.
            assert table not in first or len(rows) >= len(STATES) * len(schema.known())
        with database.read() as connection:
            context = MigrationContext.configure(connection, opts={"compare_type": True})
            assert compare_metadata(context, newest) == []


def test_each_revision_keeps_its_constraints_after_the_way_back_and_forward(empty_url: str) -> None:
    fresh: dict[str, Any] = {}
    with closing(Database(empty_url)) as database:
        for revision in schema.known():
            migrate.move(empty_url, revision)
            fresh[revision] = constraints(database)
            fill(database, f"at {revision}")
        for revision in (*reversed(schema.known()), *schema.known()):
            migrate.move(empty_url, revision)
            assert constraints(database) == fresh[revision]


def test_the_version_before_goes_on_with_each_revision(empty_url: str) -> None:
    """Services are exchanged one by one: what knows the tables of the revision before still reads and writes them."""
    with closing(Database(empty_url)) as database:
        for earlier, later in itertools.pairwise(schema.known()):
            migrate.move(empty_url, earlier)
            with database.read() as connection:
                tables = reflected(connection)
            migrate.move(empty_url, later)
            fill(database, f"by {earlier} at {later}", tables)
            with database.read() as connection:
                for name in tables.keys() - {"alembic_version"}:
                    found = connection.execute(select(tables[name])).all()
                    assert len(found) >= len(STATES)


def fill(database: Database, mark: str, tables: Mapping[str, Table] | None = None) -> None:
    """Rows in every table: jobs in every state with every wish, and all that hangs on them.

    Args:
        database: Where.
        mark: Tells these rows from others.
        tables: As whoever writes knows them; when not given, as they are.
    """
    with database.write() as connection:
        tables = {name: table for name, table in (tables or reflected(connection)).items() if name != "alembic_version"}
        jobs = [(f"{state[:4]} {desired[:4]} {mark}", state, desired) for state, desired in STATES]
        for name in ("jobs", *sorted(tables.keys() - {"jobs"})):
            for bare in (False,) if name == "jobs" else (False, True):
                rows = [row(tables[name], *job, bare=bare) for job in jobs]
                connection.execute(insert(tables[name]), rows)


def row(table: Table, job: str, state: State, desired: Desired, *, bare: bool) -> dict[str, Any]:
    """A row with a value in each column, or only in those that must have one."""
    told = {
        "state": state.value,
        "desired": desired.value,
        "lease_token": job if state is State.RUNNING else None,
        "finished_at": 5.5 if state in TERMINAL else None,
        "spec": json.dumps({"devices": 3, "é": [1.5, None]}),
        "devices": 3,
        "id": job,
        "job_id": job,
        "name": f"{job} {bare}",
        "idempotency_key": job,
    }
    found: dict[str, Any] = {}
    for number, column in enumerate(table.columns):
        if column.name in told:
            found[column.name] = told[column.name]
        elif not (bare and column.nullable):
            found[column.name] = _value(column.type, number + 100 * bare, column.name)
    return found


def _value(kind: Any, number: int, name: str) -> Any:
    if isinstance(kind, JSON):
        return {"train/loss": 0.1 + number, "nested": [None, "é"]}
    if isinstance(kind, Boolean):
        return bool(number % 2)
    if isinstance(kind, Integer):
        return number
    if isinstance(kind, Float):
        return number + 0.1
    return f"{name} é {number}"[: kind.length]


def everything(database: Database) -> Rows:
    """All rows of all tables, by their primary keys."""
    with database.read() as connection:
        return {
            name: {
                tuple(found[column.name] for column in table.primary_key): dict(found)
                for found in connection.execute(select(table)).mappings()
            }
            for name, table in reflected(connection).items()
            if name != "alembic_version"
        }


def assert_kept(before: Rows, after: Rows) -> None:
    """The same rows in each table, and in each the same values where both revisions have the column."""
    for table in before.keys() & after.keys():
        assert after[table].keys() == before[table].keys()
        for key, old in before[table].items():
            assert _shared(after[table][key], old) == _shared(old, after[table][key])
    # What only one of them has is new tables or columns, of which the rows that were there say the default.
    assert before
    assert before.keys() & after.keys() >= {"jobs", "attempts", "metrics"}


def _shared(values: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in others}


def constraints(database: Database) -> dict[str, Any]:
    """What each table promises, apart from the order of its columns."""

    def told(found: Iterator[Mapping[str, Any]] | list[Any]) -> list[str]:
        return sorted(json.dumps(dict(item), default=str, sort_keys=True) for item in found)

    with database.read() as connection:
        look = inspect(connection)
        return {
            table: {
                "columns": told(look.get_columns(table)),
                "primary key": look.get_pk_constraint(table),
                "checks": told(look.get_check_constraints(table)),
                "unique": told(look.get_unique_constraints(table)),
                "foreign keys": told(look.get_foreign_keys(table)),
                "indexes": told(look.get_indexes(table)),
            }
            for table in sorted(look.get_table_names())
        }


def reflected(connection: Connection) -> dict[str, Table]:
    """The tables as the database has them, whatever the code says."""
    found = MetaData()
    found.reflect(connection)
    return dict(found.tables)


def test_jobs_say_again_how_many_devices_they_ask_for(empty_url: str) -> None:
    """A column that the earlier revision lacks comes back out of what it has."""
    migrate.move(empty_url, schema.known()[-1])
    with closing(Database(empty_url)) as database:
        fill(database, "at the newest")
        migrate.move(empty_url, "0002")
        migrate.move(empty_url, schema.known()[-1])
        assert {job["devices"] for job in everything(database)["jobs"].values()} == {3}


@pytest.mark.parametrize("wrong", ["0999", "base", "head-1", ""])
def test_a_revision_that_is_none_is_refused(empty_url: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=r"has the revisions 0001, .*; choose one of them"):
        migrate.move(empty_url, wrong)
