import subprocess
import sys

import pytest
from sqlalchemy import text

from worker.book import Book, BookUnavailable
from worker.database import Database


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_every_way_to_write_a_postgres_url_means_the_same_driver(scheme):
    database = Database(f"{scheme}://user:secret@host/book")
    assert database.url.drivername == "postgresql+psycopg"
    assert database.dialect == "postgresql"


@pytest.mark.parametrize("url", ["mysql://host/book", "postgresql+asyncpg://host/book"])
def test_another_database_is_refused_with_the_remedy(url):
    with pytest.raises(ValueError, match=r"lives in SQLite or Postgres, got .*; set NORMCORE_DATABASE_URL to sqlite"):
        Database(url)


def test_a_database_that_does_not_answer_is_said_without_its_password(tmp_path):
    database = Database(f"postgresql://user:secret@/book?host={tmp_path}")
    outage = r"the order book must answer, got .*check that the database runs"
    with pytest.raises(BookUnavailable, match=outage) as caught, database.read():
        pass
    assert "secret" not in str(caught.value)
    with pytest.raises(BookUnavailable), database.write():
        pass


def test_a_book_without_its_tables_says_that_migrations_are_missing(empty_url, spec):
    book = Book(empty_url)
    missing = "the order book must answer, got .*(alembic_version|jobs).*check that .* its migrations were applied"
    for call in (book.ping, book.reconcile, lambda: book.submit(spec())):
        with pytest.raises(BookUnavailable, match=f"(?s){missing}"):
            call()
    book.close()


def test_the_clock_is_the_databases_and_runs(book):
    first, second = book.ping(), book.ping()
    assert 1.7e9 < first <= second < first + 60


def test_a_sqlite_book_is_made_where_it_should_be_and_is_not_slowed_by_readers(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'new' / 'book.db'}")
    with database.read() as reader:
        assert reader.scalar(text("PRAGMA journal_mode")) == "wal"
        assert reader.scalar(text("PRAGMA foreign_keys")) == 1
        assert reader.scalar(text("PRAGMA busy_timeout")) >= 10_000
        with database.write() as writer:
            writer.execute(text("CREATE TABLE t (x)"))
    with database.read() as reader:
        assert reader.scalar(text("SELECT count(*) FROM t")) == 0


def test_a_writer_in_sqlite_waits_for_its_turn_before_it_reads(tmp_path, in_parallel):
    """Read-modify-write in plain SQL: without BEGIN IMMEDIATE some of these would fail or be lost."""
    database = Database(f"sqlite:///{tmp_path / 'book.db'}")
    with database.write() as connection:
        connection.execute(text("CREATE TABLE counter (n)"))
        connection.execute(text("INSERT INTO counter VALUES (0)"))

    def count(_):
        for _ in range(5):
            with database.write() as connection:
                n = connection.scalar(text("SELECT n FROM counter"))
                connection.execute(text("UPDATE counter SET n = :n"), {"n": n + 1})

    in_parallel(count, range(10))
    with database.read() as connection:
        assert connection.scalar(text("SELECT n FROM counter")) == 50


ORDER_AND_DIE = """
import os, signal, sys
from normcore.spec import JobSpec
from worker.book import Book
spec = JobSpec.model_validate({"model": {"kind": "mlp"}, "data": {"kind": "digits"}})
print(Book(sys.argv[1]).submit(spec).job.id, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_an_order_that_was_acknowledged_outlives_its_process(database_url, book):
    command = [sys.executable, "-c", ORDER_AND_DIE, database_url]
    process = subprocess.run(command, check=False, capture_output=True, text=True)
    assert process.returncode == -9, process.stderr
    assert book.job(process.stdout.strip()) is not None


def imported(modules: str) -> set[str]:
    code = f"import sys, {modules}; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())


def test_the_book_and_the_queue_are_quick_to_import_because_they_bring_no_heavy_package():
    assert not imported("worker.book") & {"torch", "mlflow", "celery", "alembic", "numpy", "sqlalchemy.orm"}
    assert not imported("worker.queue, worker.scheduler, worker.links") & {"torch", "mlflow", "alembic", "numpy"}
