"""The clerk with a real order book, which is away now and then."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from normcore.records import Point, Remark
from worker.book import Book, BookUnavailable, Claim, Desired, Event, Progress
from worker.clerk import Clerk
from worker.settings import Settings
from worker.standstill import copying
from worker.wire import Kept


@pytest.fixture
def clerk_of(book: Book, tmp_path: Path) -> Callable[..., Clerk]:
    def make(claim: Claim, **settings: Any) -> Clerk:
        limits = {"state_dir": tmp_path, "heartbeat_s": 0.05, "lease_ttl_s": 30.0} | settings
        clerk = Clerk(book, claim.token, Settings(**limits), claimed_at=time.monotonic())
        clerk.start()
        return clerk

    return make


def close(clerk: Clerk) -> None:
    clerk.close()
    clerk.join(30)
    assert not clerk.is_alive()


def points(steps: range) -> tuple[Point, ...]:
    return tuple(Point("train/loss", step, 0.5) for step in steps)


def kept(folder: Path, step: int, *, last: bool = False, best: bool = False) -> Kept:
    path = folder / f"step_{step}"
    path.mkdir()
    return Kept(step, str(path), "0" * 64, 10, last, best)


def test_what_an_attempt_says_is_in_the_book(book, start, clerk_of, tmp_path):
    claim = start(book)
    clerk = clerk_of(claim)
    clerk.add(points(range(1, 6)), Progress(5, 0.5, 100.0))
    clerk.keep(kept(tmp_path, 5, last=True))
    close(clerk)
    job = book.job(claim.job_id)
    assert (job.progress_step, job.epoch, job.steps_per_s) == (5, 0.5, 100.0)
    assert [point.step for point in book.metrics(claim.job_id)] == [1, 2, 3, 4, 5]
    assert [(row.step, row.kind) for row in book.checkpoints(claim.job_id)] == [(5, "last")]


def test_a_checkpoint_is_committed_after_every_point_before_it(book, start, clerk_of, tmp_path, monkeypatch):
    seen = []
    commit = Book.commit_checkpoint

    def look(self: Book, token: str, **facts: Any) -> bool:
        seen.append((facts["step"], len(self.metrics(claim.job_id))))
        return commit(self, token, **facts)

    monkeypatch.setattr(Book, "commit_checkpoint", look)
    claim = start(book)
    clerk = clerk_of(claim, heartbeat_s=60)
    for step in (3, 6, 9):
        clerk.add(points(range(step - 2, step + 1)), Progress(step))
        clerk.keep(kept(tmp_path, step))
    close(clerk)
    assert seen == [(3, 3), (6, 6), (9, 9)]


def test_only_the_newest_checkpoints_stay_on_disk(book, start, clerk_of, tmp_path):
    claim = start(book)
    clerk = clerk_of(claim, keep_checkpoints=2)
    made = [kept(tmp_path, step) for step in (1, 2, 3)]
    for checkpoint in made:
        clerk.keep(checkpoint)
    close(clerk)
    assert [Path(checkpoint.path).exists() for checkpoint in made] == [False, True, True]
    assert [row.path for row in book.checkpoints(claim.job_id)] == [None, made[1].path, made[2].path]


def test_the_best_checkpoint_stays_on_disk_however_old_until_there_is_a_better_one(book, start, clerk_of, tmp_path):
    claim = start(book)
    clerk = clerk_of(claim, keep_checkpoints=1)
    steps = {1: True, 2: False, 3: False, 4: True, 5: False, 6: False}
    made = {step: Path(kept(tmp_path, step).path) for step in steps}
    for step, best in steps.items():
        clerk.keep(Kept(step, str(made[step]), "0" * 64, 10, last=step == 6, best=best))
    close(clerk)
    there = [step for step, path in made.items() if path.exists()]
    assert there == [4, 6]
    rows = book.checkpoints(claim.job_id)
    assert [row.step for row in rows if row.path is not None] == there
    assert [row.kind for row in rows] == ["best", "periodic", "periodic", "best", "periodic", "last"]


def test_a_remark_is_an_event_after_what_came_before_it(book, start, clerk_of, tmp_path):
    claim = start(book)
    clerk = clerk_of(claim)
    clerk.add(points(range(1, 3)), Progress(2))
    clerk.keep(kept(tmp_path, 2))
    clerk.remark(Remark(3, "compile_fell_back", "it was traced in parts"))
    clerk.add(points(range(3, 5)), Progress(4))
    close(clerk)
    *_, before, event = book.events(claim.job_id)
    assert (before.type, event.type) == ("checkpoint", "remark")
    assert event.data == {"step": 3, "code": "compile_fell_back", "detail": "it was traced in parts"}
    assert len(book.metrics(claim.job_id)) == 4


@pytest.mark.parametrize(("code", "verified"), [("resume_verified", True), ("resume_differs", False), ("else", None)])
def test_an_attempt_says_whether_it_went_on_as_foretold(book, start, clerk_of, code, verified):
    claim = start(book)
    clerk = clerk_of(claim)
    clerk.remark(Remark(3, code, "so it is"))
    close(clerk)
    assert book.attempts(claim.job_id)[-1].resume_verified is verified


def test_wishes_are_heard(book, start, clerk_of, eventually):
    claim = start(book)
    clerk = clerk_of(claim)
    book.wish(claim.job_id, Desired.CANCEL)
    eventually(lambda: clerk.desired is Desired.CANCEL)
    close(clerk)


def test_a_fenced_clerk_writes_nothing_and_ends(book, start, clerk_of, tmp_path):
    claim = start(book)
    book.finish(claim.token, Event.LOST)
    clerk = clerk_of(claim)
    clerk.add(points(range(1, 4)), Progress(3))
    clerk.keep(kept(tmp_path, 3))
    clerk.join(30)
    assert clerk.fenced
    assert (book.metrics(claim.job_id), book.checkpoints(claim.job_id)) == ([], [])


def test_what_could_not_be_written_is_written_later_and_once(book, start, clerk_of, tmp_path, monkeypatch, eventually):
    claim = start(book)
    calls = []
    real = Book.add_metrics

    def away_at_first(self: Book, token: str, added: Any) -> bool:
        calls.append(added)
        if len(calls) < 3:
            raise BookUnavailable("away")
        return real(self, token, added)

    monkeypatch.setattr(Book, "add_metrics", away_at_first)
    clerk = clerk_of(claim)
    clerk.add(points(range(1, 4)), Progress(3))
    clerk.keep(kept(tmp_path, 3))
    eventually(lambda: len(calls) == 1)
    clerk.add(points(range(4, 6)), Progress(5))
    close(clerk)
    assert [point.step for point in book.metrics(claim.job_id)] == [1, 2, 3, 4, 5]
    assert len(book.checkpoints(claim.job_id)) == 1


def test_the_lease_is_taken_for_lost_while_it_still_holds(book, start, clerk_of, eventually, monkeypatch):
    claim = start(book)
    clerk = clerk_of(claim, lease_ttl_s=3.0)
    eventually(lambda: not clerk.expired)
    with monkeypatch.context() as patch:
        patch.setattr(Book, "renew", lambda *_: (_ for _ in ()).throw(BookUnavailable("away")))
        cut_at = time.monotonic()
        eventually(lambda: clerk.expired)
        # A third of it is left to end the training in.
        assert time.monotonic() - cut_at < 3.0
    eventually(lambda: not clerk.expired)
    close(clerk)


def test_while_a_backup_is_taken_checkpoints_stay_and_afterwards_they_go(book, start, clerk_of, tmp_path):
    claim = start(book)
    clerk = clerk_of(claim, keep_checkpoints=1)
    made = [kept(tmp_path, step) for step in (1, 2, 3)]
    clerk.keep(made[0])
    clerk.close()
    clerk.join(30)
    clerk = clerk_of(claim, keep_checkpoints=1)
    with copying(tmp_path / "jobs"):
        clerk.keep(made[1])
        close(clerk)
        assert all(Path(checkpoint.path).exists() for checkpoint in made)
        assert [row.step for row in book.checkpoints(claim.job_id) if row.path] == [1, 2]
    clerk = clerk_of(claim, keep_checkpoints=1)
    clerk.keep(made[2])
    close(clerk)
    assert [Path(checkpoint.path).exists() for checkpoint in made] == [False, False, True]


def test_the_lease_is_renewed_while_the_book_is_slower_than_the_training(book, start, clerk_of, tmp_path, monkeypatch):
    claim, calls = start(book), []
    renew, write = Book.renew, Book.add_metrics

    def slow(self: Book, token: str, points: Any) -> bool:
        calls.append(len(points))
        time.sleep(0.02)
        return write(self, token, points)

    monkeypatch.setattr(Book, "renew", lambda self, token, progress: calls.append(0) or renew(self, token, progress))
    monkeypatch.setattr(Book, "add_metrics", slow)
    clerk = clerk_of(claim, heartbeat_s=0.05)
    clerk.add(points(range(8000)), Progress(8000))
    close(clerk)
    assert len(book.metrics(claim.job_id)) == 8000
    # Never more than a heartbeat's worth of writing, and the transaction in which it ended, between two renewals.
    writes = "".join("r" if n == 0 else "w" for n in calls).split("r")
    assert max(map(len, writes)) <= 4
    assert max(calls) <= 1000
