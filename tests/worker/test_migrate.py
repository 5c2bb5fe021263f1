import subprocess
import sys
import threading

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text

from worker import migrate, scheduler, schema
from worker.book import Book, BookUnavailable, Event, MetricPoint, SchemaTooNew, State
from worker.database import Database
from worker.pools import Pool
from worker.presence import Presence
from worker.settings import Settings
from worker.tables import metadata


def tables(url):
    database = Database(url)
    with database.read() as connection:
        names = set(inspect(connection).get_table_names())
    database.close()
    return names


def checks(connection):
    return {check["name"]: check["sqltext"] for check in inspect(connection).get_check_constraints("jobs")}


def test_the_migrated_schema_is_the_one_that_the_code_describes(empty_url):
    migrate.upgrade(empty_url)
    database = Database(empty_url)
    with database.write() as connection:
        difference = compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), metadata)
        migrated = checks(connection)  # which the comparison does not look at
        metadata.drop_all(connection)
        metadata.create_all(connection)
        created = checks(connection)
    database.close()
    assert difference == []
    assert migrated == created


def test_migrating_again_changes_nothing(empty_url, spec):
    migrate.upgrade(empty_url)
    book = Book(empty_url)
    job = book.submit(spec()).job
    migrate.upgrade(empty_url)
    assert book.job(job.id) == job
    book.close()


def test_all_steps_can_be_taken_back_and_forth_on_a_book_with_jobs(empty_url, spec):
    migrate.upgrade(empty_url)
    book = Book(empty_url)
    book.submit(spec(labels={"a": "b"}))
    book.worker_seen("w", "cpu")
    (dispatch,) = book.dispatch()
    claim = book.claim(dispatch.job_id, dispatch.dispatch_seq, "w")
    book.add_metrics(claim.token, [MetricPoint("train/loss", 1, 2.0)])
    book.commit_checkpoint(claim.token, step=1, path="/1", sha256="a", size=1)
    book.finish(claim.token, Event.SUCCEEDED)
    assert book.job(claim.job_id).state is State.SUCCEEDED
    book.close()
    migrate.downgrade(empty_url, "base")
    assert tables(empty_url) == {"alembic_version"}
    migrate.upgrade(empty_url)
    assert tables(empty_url) == {"alembic_version", *metadata.tables}


def test_jobs_from_before_ask_for_the_devices_that_their_specs_say(empty_url, spec):
    migrate.upgrade(empty_url)
    book = Book(empty_url)
    four = book.submit(spec(batch_size=64, devices=4)).job
    one = book.submit(spec()).job
    book.close()
    migrate.downgrade(empty_url, "0002")
    migrate.upgrade(empty_url)
    book = Book(empty_url)
    book.worker_seen("w", "cpu")
    assert [dispatch.job_id for dispatch in book.dispatch()] == [one.id]
    book.worker_seen("v", "cpu", processes=4)
    assert [dispatch.job_id for dispatch in book.dispatch()] == [four.id]
    book.close()


def test_many_processes_may_migrate_at_once(empty_url):
    code = "import sys; from worker import migrate; sys.stdin.read(1); migrate.upgrade(sys.argv[1])"
    command = [sys.executable, "-c", code, empty_url]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate("x")[1] for process in processes] == [""] * 3
    assert [process.returncode for process in processes] == [0] * 3
    assert tables(empty_url) == {"alembic_version", *metadata.tables}


def test_a_step_that_fails_leaves_the_schema_as_it_was(empty_url):
    database = Database(empty_url)
    with database.write() as connection:
        connection.execute(text("CREATE TABLE workers (x INTEGER)"))  # the last table of the first step is in the way
    with pytest.raises(Exception, match="workers"):
        migrate.upgrade(empty_url)
    assert tables(empty_url) == {"workers"}
    database.close()


def test_the_module_migrates_the_book_that_the_settings_name(tmp_path):
    environment = {"NORMCORE_STATE_DIR": str(tmp_path / "state"), "PATH": ""}
    subprocess.run([sys.executable, "-m", "worker.migrate"], check=True, env=environment)
    assert tables(f"sqlite:///{tmp_path / 'state' / 'normcore.db'}") == {"alembic_version", *metadata.tables}


def test_the_command_goes_to_a_revision_and_says_which_there_are(tmp_path, monkeypatch):
    monkeypatch.setattr(migrate, "settings", lambda: Settings(state_dir=tmp_path))
    migrate.main(["0002"])
    database = Database(f"sqlite:///{tmp_path / 'normcore.db'}")
    with database.write() as connection:
        assert schema.current(connection) == "0002"
    with pytest.raises(
        SystemExit, match=r"^nothing is migrated: the order book's schema has the revisions 0001, .*'2'"
    ):
        migrate.main(["2"])
    with pytest.raises(SystemExit, match="one revision at most"):
        migrate.main(["0001", "0002"])
    migrate.main([])
    newest = schema.known()[-1]
    with database.write() as connection:
        assert schema.current(connection) == newest
        connection.execute(text("UPDATE alembic_version SET version_num = '0999'"))
    database.close()
    with pytest.raises(SystemExit) as refusal:
        migrate.main([])
    assert refusal.value.code == (
        "nothing is migrated: the order book's schema must be one that this version knows, "
        f"0001 to {newest}, got 0999; run the version that made it, or have that take it back: "
        f"python -m worker.migrate {newest}"
    )


def test_a_book_with_steps_missing_is_not_ready_and_one_from_the_future_is_refused(empty_url):
    migrate.move(empty_url, "0001")
    book = Book(empty_url)
    with pytest.raises(BookUnavailable, match=r"must be \d{4}, got 0001; apply the steps that are missing"):
        book.ping()
    with pytest.raises(BookUnavailable, match="apply the steps that are missing"):
        book.require_schema()
    migrate.upgrade(empty_url)
    book.require_schema()
    with book.database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0999'"))
    assert book.ping()  # whoever is at work goes on while a later version takes over
    presence = Presence(book, "w", "cpu", Pool(), heartbeat_s=1.0, draining=threading.Event())
    for start in (book.require_schema, presence.announce, lambda: scheduler.migrate(empty_url, threading.Event())):
        with pytest.raises(SchemaTooNew, match="must be one that this version knows"):
            start()
    book.close()
