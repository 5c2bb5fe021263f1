import time

import pytest

from worker.book import Event, Reason, State
from worker.census import Endings


def reasons(census):
    return {queue.reason: queue.jobs for queue in census.queues}


def test_an_empty_book_counts_every_state_as_none(book):
    census = book.census()
    assert census.states == dict.fromkeys(State, 0)
    assert (census.queues, census.running, census.endings, census.workers) == ((), (), (), ())
    assert (census.attempts, census.repeated, census.waits.jobs, census.schedulers) == (0, 0, 0, 0)
    assert set(census.waits.up_to.values()) == {0}


def test_queued_jobs_are_counted_by_what_they_wait_for(book, spec, set_columns):
    ids = [book.submit(spec(seed=seed)).job.id for seed in range(3)]
    book.submit(spec(device="cuda"))
    book.submit(spec(devices=4, batch_size=64))
    assert reasons(book.census()) == {"no-worker": 5}
    set_columns(book, ids[0], not_before=time.time() + 100)
    set_columns(book, ids[1], created_at=time.time() - 1000)
    book.worker_seen("w", "cpu")
    census = book.census()
    assert reasons(census) == {"backoff": 1, "busy": 2, "no-gpu": 1, "too-few-devices": 1}
    assert {queue.reason for queue in census.queues if queue.oldest_age_s > 900} == {"busy"}
    assert next(queue.oldest_age_s for queue in census.queues if queue.reason == "busy") == pytest.approx(1000, abs=60)


def test_a_running_job_shows_its_worker_and_how_long_it_has_been_silent(book, start, set_columns):
    claim = start(book, "w")
    (running,) = book.census().running
    assert (running.id, running.worker, running.num_steps, running.steps_per_s) == (claim.job_id, "w", 100, None)
    assert running.heartbeat_age_s == pytest.approx(0, abs=5)
    set_columns(book, claim.job_id, lease_expires_at=time.time() + 30 - 1000)
    assert book.census().running[0].heartbeat_age_s == pytest.approx(1000, abs=60)


def test_attempts_are_counted_by_how_they_ended(book, start, claim_again):
    first = start(book, "w")
    assert book.finish(first.token, Event.LOST, Reason("worker-lost", "gone"))
    again = claim_again(book, first.job_id, "w")
    assert book.finish(again.token, Event.FAILED, Reason("out-of-memory", "too large"))
    assert book.finish(start(book, "w").token, Event.SUCCEEDED)
    start(book, "w")
    census = book.census()
    assert (census.attempts, census.repeated) == (4, 1)
    assert census.endings == (
        Endings("failed", "out-of-memory", 1),
        Endings("lost", "worker-lost", 1),
        Endings("succeeded", "", 1),
    )
    assert census.states[State.RUNNING] == 1


def test_waiting_times_are_counted_up_to_each_bound(book, start, set_columns):
    for wait_s in (0.5, 30.0, 5000.0):
        set_columns(book, start(book, f"w{wait_s}").job_id, created_at=1000.0, started_at=1000.0 + wait_s)
    waits = book.census().waits
    assert (waits.jobs, waits.total_s) == (3, 5030.5)
    assert waits.up_to == {1.0: 1, 10.0: 1, 60.0: 2, 600.0: 2, 3600.0: 2, 36000.0: 3}


def test_workers_and_schedulers_count_while_they_are_seen(make_book):
    book, impatient = make_book(), make_book(lease_ttl_s=0.01)
    book.worker_seen("w", "cuda:0")
    book.scheduler_seen("s")
    book.scheduler_seen("s")
    census = book.census()
    assert ([worker.name for worker in census.workers], census.schedulers) == (["w"], 1)
    time.sleep(0.05)
    census = impatient.census()
    assert (census.workers, census.schedulers) == ((), 0)
    book.scheduler_gone("s")
    assert book.census().schedulers == 0


def test_only_what_has_ended_counts_as_unsent(book, start, set_columns):
    running, ended = start(book, "v"), start(book, "w")
    assert book.finish(ended.token, Event.SUCCEEDED)
    set_columns(book, ended.job_id, finished_at=time.time() - 1000)
    assert book.census().unsent.jobs == 0
    unsent = book.census([running.job_id, ended.job_id, "no such job"]).unsent
    assert (unsent.jobs, unsent.oldest_age_s) == (1, pytest.approx(1000, abs=60))
