import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import create_engine, text

from worker import migrate
from worker.book import Book, BookUnavailable, Event, State
from worker.queue import QueueUnavailable, make_app, ping, publish
from worker.scheduler import Scheduler


class Bell:
    """Where a scheduler rings; it can be away."""

    def __init__(self) -> None:
        self.rung = []
        self.away = False
        self.pings = 0

    def publish(self, job_id, dispatch_seq, pool) -> None:
        if self.away:
            raise QueueUnavailable("the queue must answer, got nothing")
        self.rung.append((job_id, dispatch_seq, pool))

    def ping(self) -> None:
        self.pings += 1
        if self.away:
            raise QueueUnavailable("the queue must answer, got nothing")


@pytest.fixture
def bell():
    return Bell()


@pytest.fixture
def scheduler(book, bell):
    return Scheduler(book, publish=bell.publish, ping=bell.ping)


def test_a_tick_rings_for_what_it_dispatched(book, spec, scheduler, bell):
    scheduler.tick()
    assert bell.rung == []
    ids = [book.submit(spec(seed=seed)).job.id for seed in range(3)]
    book.worker_seen("a", "cpu")
    book.worker_seen("b", "cuda:0")
    scheduler.tick()
    scheduler.tick()
    assert bell.rung == [(ids[0], 1, "cuda"), (ids[1], 1, "cpu")]
    assert bell.pings == 0


def test_a_bell_is_rung_when_the_dispatch_is_committed_and_nothing_is_locked(book, make_book, spec):
    """The worker may claim before the scheduler has come back from ringing."""
    other, claims = make_book(), []

    def claim_at_once(job_id, dispatch_seq, _pool):
        claims.append(other.claim(job_id, dispatch_seq, "w"))

    book.submit(spec())
    book.worker_seen("w", "cpu")
    Scheduler(book, publish=claim_at_once, ping=lambda: None).tick()
    assert [claim.attempt for claim in claims] == [1]


def test_a_bell_that_cannot_be_rung_takes_the_dispatches_back_once(book, spec, scheduler, bell):
    ids = [book.submit(spec(seed=seed)).job.id for seed in range(2)]
    book.worker_seen("a", "cpu")
    book.worker_seen("b", "cpu")
    bell.away = True
    for _ in range(3):
        with pytest.raises(QueueUnavailable):
            scheduler.tick()
    assert {book.job(job_id).state for job_id in ids} == {State.QUEUED}
    assert [event.type for event in book.events(ids[1])] == ["submitted", "dispatched", "unclaimed"]
    bell.away = False
    scheduler.tick()
    assert bell.rung == [(ids[0], 2, "cpu"), (ids[1], 2, "cpu")]


def test_a_scheduler_that_dies_before_it_rings_leaves_the_job_to_the_reconciliation(
    book, spec, scheduler, bell, set_columns
):
    def die(*_):
        raise SystemExit

    job = book.submit(spec()).job
    book.worker_seen("w", "cpu")
    with pytest.raises(SystemExit):
        Scheduler(book, publish=die, ping=bell.ping).tick()
    assert book.job(job.id).state is State.DISPATCHED
    set_columns(book, job.id, dispatched_at=0)
    scheduler.tick()
    assert bell.rung == [(job.id, 2, "cpu")]


def test_a_tick_mends_what_is_due(book, start, scheduler, bell, set_columns):
    claim = start(book)
    set_columns(book, claim.job_id, lease_expires_at=0)
    scheduler.tick()
    assert bell.rung == [(claim.job_id, 2, "cpu")]
    assert book.job(claim.job_id).infra_retries == 1


@pytest.fixture
def running():
    """Runs schedulers in threads, and sees to it that they stop without an error."""
    stop, runs = threading.Event(), []
    with ThreadPoolExecutor() as pool:
        yield lambda scheduler: runs.append(pool.submit(scheduler.run, stop))
        stop.set()
    assert [run.exception() for run in runs] == [None] * len(runs)


def test_a_scheduler_outlives_redis(book, spec, broker, running, eventually):
    app = make_app(broker.url)
    rings = {"publish": lambda *message: publish(*message, via=app), "ping": lambda: ping(via=app)}
    running(Scheduler(book, **rings, tick_s=0.01))
    book.worker_seen("w", "cpu")
    broker.kill()
    job = book.submit(spec()).job
    eventually(lambda: "unclaimed" in [event.type for event in book.events(job.id)])
    broker.start()
    eventually(broker.messages)
    assert broker.messages() == [{"job_id": job.id, "dispatch_seq": 2}]


@pytest.fixture
def own_book(new_postgres_database):
    """A book in a database that no other test uses."""
    url = new_postgres_database()
    migrate.upgrade(url)
    book = Book(url)
    yield book
    book.close()


def test_a_scheduler_outlives_the_database(own_book, postgres_server, spec, running, eventually):
    book, bell = own_book, Bell()
    running(Scheduler(book, publish=bell.publish, ping=bell.ping, tick_s=0.01, reconcile_every_s=0.01))
    job = book.submit(spec()).job
    database = book.database.url.database
    admin = create_engine(postgres_server, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f'ALTER DATABASE "{database}" ALLOW_CONNECTIONS false'))
        end = text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :database")
        connection.execute(end, {"database": database})
        with pytest.raises(BookUnavailable):
            book.ping()
        connection.execute(text(f'ALTER DATABASE "{database}" ALLOW_CONNECTIONS true'))
    admin.dispose()
    book.worker_seen("w", "cpu")
    eventually(lambda: bell.rung == [(job.id, 1, "cpu")])


def test_a_scheduler_goes_on_after_an_error_that_nobody_thought_of(book, spec, running, eventually, caplog):
    bell = Bell()

    def stumble(job_id, dispatch_seq, pool):
        if not bell.rung:
            bell.rung.append(None)
            raise ZeroDivisionError
        bell.publish(job_id, dispatch_seq, pool)

    running(Scheduler(book, publish=stumble, ping=bell.ping, tick_s=0.01))
    book.worker_seen("a", "cpu")
    first = book.submit(spec()).job
    eventually(lambda: book.job(first.id).state is State.DISPATCHED)
    book.worker_seen("b", "cpu")
    second = book.submit(spec(seed=1)).job
    eventually(lambda: bell.rung == [None, (second.id, 1, "cpu")])
    assert "the scheduler goes on after an error" in caplog.text


def test_the_process_migrates_dispatches_and_stops_when_asked(tmp_path, spec, broker, eventually):
    environment = {**os.environ, "NORMCORE_STATE_DIR": str(tmp_path), "NORMCORE_REDIS_URL": broker.url}
    with (tmp_path / "log").open("w") as log:
        command = [sys.executable, "-m", "worker.scheduler"]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    eventually(lambda: "the scheduler is at work" in (tmp_path / "log").read_text())
    book = Book(f"sqlite:///{tmp_path / 'normcore.db'}")
    book.worker_seen("w", "cpu")
    job = book.submit(spec()).job
    eventually(broker.messages)
    assert broker.messages() == [{"job_id": job.id, "dispatch_seq": 1}]
    claim = book.claim(job.id, 1, "w")
    assert book.finish(claim.token, Event.SUCCEEDED)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0
    assert "the scheduler has stopped" in (tmp_path / "log").read_text()
    book.close()


def test_a_scheduler_makes_known_that_it_is_at_work(book, scheduler):
    assert book.census().schedulers == 0
    scheduler.tick()
    assert book.census().schedulers == 1


def test_the_beat_goes_on_while_the_queue_is_away_and_stops_when_a_turn_does_not_end(
    book, spec, bell, tmp_path, running, eventually
):
    beat, hung = tmp_path / "beat", threading.Event()

    def hang(*_):
        assert hung.wait(60)

    bell.away = True
    waiting = Scheduler(book, publish=bell.publish, ping=bell.ping, tick_s=0.01, beat=beat)
    running(waiting)
    book.worker_seen("w", "cpu")
    book.submit(spec())
    eventually(lambda: bell.pings)
    before = beat.stat().st_mtime_ns
    eventually(lambda: beat.stat().st_mtime_ns > before)

    waiting._ping = hang
    bell.pings = 0
    eventually(lambda: beat.stat().st_mtime_ns < time.time_ns() - 200_000_000)
    hung.set()
    eventually(lambda: beat.stat().st_mtime_ns > time.time_ns() - 200_000_000)
