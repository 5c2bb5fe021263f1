"""A restored order book: nobody works on what was under way, so it is queued again, and nobody is charged."""

from __future__ import annotations

from worker import migrate
from worker.backup import settle
from worker.book import Book, Desired, Event, State
from worker.settings import Settings


def test_what_was_under_way_is_queued_again_at_no_charge(book, start, spec, claim_again):
    running, cancelled = start(book, worker="a"), start(book, worker="b", seed=2)
    book.wish(cancelled.job_id, Desired.CANCEL)
    done = start(book, worker="c", seed=3)
    book.finish(done.token, Event.SUCCEEDED)
    waiting = book.submit(spec(seed=4)).job.id
    ((on_its_way, *_),) = [(dispatch.job_id,) for dispatch in book.dispatch()]
    assert on_its_way == waiting

    assert sorted(book.start_over()) == sorted([running.job_id, cancelled.job_id, on_its_way])
    assert book.job(running.job_id).state is State.QUEUED
    assert book.job(running.job_id).infra_retries == 0
    assert book.attempts(running.job_id)[0].outcome == Event.RELEASED
    assert book.job(cancelled.job_id).state is State.CANCELLED
    assert book.job(on_its_way).state is State.QUEUED
    assert book.job(done.job_id).state is State.SUCCEEDED
    assert book.workers() == []
    assert book.start_over() == []
    assert claim_again(book, running.job_id, "d").attempt == 2


def test_an_older_book_is_brought_forward_first(tmp_path, monkeypatch, capsys):
    config = Settings(state_dir=tmp_path)
    migrate.move(config.database, "0001")
    monkeypatch.setattr(settle, "settings", lambda: config)
    settle.main()
    assert capsys.readouterr().out == "0 jobs that were under way are queued again\n"
    book = Book.open(config)
    book.require_schema()
    book.close()
