"""Which revision the order book's schema has, and which ones this version of the code knows. Needs no Alembic."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from sqlalchemy import Connection, text

from worker.database import BookUnavailable


class SchemaTooNew(RuntimeError):
    """The order book was migrated by a later version, and this one could only do harm to it."""


@cache
def known() -> tuple[str, ...]:
    """The revisions that this version knows, oldest first: the numbers that the steps' files begin with.

    Example:
        >>> known()[0]
        '0001'
    """
    return tuple(sorted(path.name[:4] for path in (Path(__file__).parent / "migrations" / "versions").glob("0*.py")))


def current(connection: Connection) -> str | None:
    """The revision that the database is at; None where all steps were taken back.

    A database that was never migrated has no table to say so in, which `Database` reports as `BookUnavailable`.
    """
    found = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return None if found is None else str(found)


def require_known(revision: str | None) -> None:
    """Nothing, where this version knows the revision.

    Raises:
        SchemaTooNew: it does not.
    """
    if revision is not None and revision not in known():
        newest = known()[-1]
        raise SchemaTooNew(
            f"the order book's schema must be one that this version knows, {known()[0]} to {newest}, got {revision}; "
            f"run the version that made it, or have that take it back: python -m worker.migrate {newest}"
        )


def require_migrated(revision: str | None) -> None:
    """Nothing, where no step is missing; a revision that is not known has more than are needed.

    Raises:
        BookUnavailable: steps are missing.
    """
    if revision is None or revision < known()[-1]:
        raise BookUnavailable(
            f"the order book's schema must be {known()[-1]}, got {revision}; apply the steps that are missing: "
            "python -m worker.migrate"
        )
