import itertools

import pytest
from sqlalchemy import insert
from sqlalchemy.exc import IntegrityError

from worker.clock import now
from worker.states import RULES, TERMINAL, Event, State
from worker.tables import attempts, jobs
from worker.transitions import advance, touch
from worker.views import Reason


def put(book, spec, state):
    """A job in a state, with an open attempt, however it got there."""
    job = book.submit(spec()).job
    lease = {"lease_token": job.id, "lease_owner": "w", "lease_expires_at": now() + 30}
    columns = {"state": state.value, "attempt": 1, **(lease if state is State.RUNNING else {})}
    if state in TERMINAL:
        columns["finished_at"] = now()
    with book.database.write() as connection:
        connection.execute(jobs.update().where(jobs.c.id == job.id).values(**columns))
        connection.execute(insert(attempts).values(job_id=job.id, n=1, worker="w", started_at=now()))
    return job.id


def look(book, job_id):
    with book.database.read() as connection:
        row = connection.execute(jobs.select().where(jobs.c.id == job_id)).one()
    return row, book.events(job_id), book.attempts(job_id)


@pytest.mark.parametrize("event", Event)
def test_an_event_moves_a_job_in_the_states_it_is_legal_in_and_changes_nothing_in_the_others(book, spec, event):
    rule = RULES[event]
    for state in State:
        job_id = put(book, spec, state)
        before = look(book, job_id)
        with book.database.write() as connection:
            given = {"lease_token": job_id} if event is Event.CLAIMED else {}
            moved = advance(connection, event, jobs.c.id == job_id, values=given, reason=Reason("why", "because"))
        row, events, tries = look(book, job_id)
        if state not in rule.sources:
            assert moved is None
            assert (row, events, tries) == before
            continue
        assert moved == row
        assert row.state == rule.target.value
        assert [(one.seq, one.type, one.state) for one in events[1:]] == [(2, event.value, rule.target)]
        assert events[-1].data["reason"] == {"code": "why", "detail": "because"}
        assert (row.lease_token is not None) == (rule.target is State.RUNNING)
        assert (row.finished_at is not None) == (rule.target in TERMINAL)
        assert row.reason_detail == ("because" if rule.target in TERMINAL else None)
        if state is State.RUNNING:
            assert tries[0].ended_at is not None
            assert tries[0].outcome == event.value
            assert tries[0].reason == Reason("why", "because")


def test_a_guard_that_does_not_hold_stops_an_event(book, spec):
    job_id = put(book, spec, State.QUEUED)
    with book.database.write() as connection:
        guards = (jobs.c.id == job_id, jobs.c.dispatch_seq == 7)
        assert advance(connection, Event.DISPATCHED, *guards) is None
        assert touch(connection, *guards, values={}, kind="wish", data={}) is None
    assert len(book.events(job_id)) == 1


def test_an_event_and_its_change_are_kept_together_or_not_at_all(book, spec):
    job_id = put(book, spec, State.QUEUED)

    def crash():
        with book.database.write() as connection:
            assert advance(connection, Event.DISPATCHED, jobs.c.id == job_id) is not None
            raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"):
        crash()
    row, events, _ = look(book, job_id)
    assert (row.state, len(events)) == ("queued", 1)


@pytest.mark.parametrize(
    "columns",
    [
        {"state": "running"},
        {"lease_token": "t"},
        {"state": "succeeded"},
        {"finished_at": 1.0},
        {"state": "asleep"},
        {"desired": "fly"},
    ],
    ids=str,
)
def test_the_database_itself_refuses_rows_that_cannot_be(book, spec, set_columns, columns):
    job_id = put(book, spec, State.QUEUED)
    with pytest.raises(IntegrityError):
        set_columns(book, job_id, **columns)


def test_a_reason_is_kept_whatever_bytes_and_length_it_has(book, spec):
    job_id = put(book, spec, State.RUNNING)
    with book.database.write() as connection:
        advance(connection, Event.FAILED, jobs.c.id == job_id, reason=Reason("c" * 999, "a\0b\udcff" + "x" * 9999))
    reason = book.job(job_id).reason
    assert reason.code == "c" * 64
    assert reason.detail.startswith("ab?x")
    assert len(reason.detail) == 4000


def test_a_jobs_events_keep_their_order_when_threads_write_them(book, spec, in_parallel):
    job_id = put(book, spec, State.RUNNING)

    def write(number):
        with book.database.write() as connection:
            touch(connection, jobs.c.id == job_id, values={}, kind="note", data={"n": number})

    in_parallel(write, range(24))
    events = book.events(job_id)
    assert [event.seq for event in events] == list(range(1, 26))
    assert sorted(event.data["n"] for event in events[1:]) == list(range(24))
    assert all(earlier.at <= later.at for earlier, later in itertools.pairwise(events))


def test_a_reader_who_resumes_never_misses_an_event(book, spec, in_parallel):
    """What is read after the last number seen is everything, also while it is being written."""
    job_id = put(book, spec, State.RUNNING)
    seen = []

    def work(role):
        if role == "write":
            for _ in range(10):
                with book.database.write() as connection:
                    touch(connection, jobs.c.id == job_id, values={}, kind="note", data={})
            return
        while len(seen) < 41:
            seen.extend(event.seq for event in book.events(job_id, after=seen[-1] if seen else 0, limit=3))

    in_parallel(work, ["read", "write", "write", "write", "write"])
    assert seen == list(range(1, 42))
