"""What is left of a job's checkpoints on the disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.book import Book, Claim, Event
from worker.checkpoint import folder_name
from worker.tidy import tidy, tidy_all


def made(book: Book, claim: Claim, jobs: Path, steps: tuple[int, ...], *, best: int | None = None) -> None:
    for step in steps:
        path = jobs / claim.job_id / f"a{claim.attempt}" / folder_name(step)
        path.mkdir(parents=True)
        (path / "model.safetensors").touch()
        facts = {"path": str(path), "sha256": "0" * 64, "size": 1, "best": step == best}
        book.commit_checkpoint(claim.token, step=step, **facts)


def left(jobs: Path, claim: Claim) -> list[str]:
    return sorted(str(path.relative_to(jobs / claim.job_id)) for path in (jobs / claim.job_id).glob("*/*step_*"))


@pytest.mark.parametrize("event", [Event.SUCCEEDED, Event.DIVERGED, Event.FAILED, Event.CANCELLED])
def test_an_ended_job_leaves_its_newest_and_its_best_checkpoint(book, start, tmp_path, event):
    claim = start(book)
    made(book, claim, tmp_path, (10, 20, 30, 40), best=20)
    (tmp_path / claim.job_id / "fetched" / folder_name(10)).mkdir(parents=True)
    (tmp_path / claim.job_id / "a1" / ".step_00000050.torn").mkdir()
    book.finish(claim.token, event)
    tidy(book, tmp_path / claim.job_id)
    assert left(tmp_path, claim) == ["a1/step_00000020", "a1/step_00000040"]


@pytest.mark.parametrize("event", [None, Event.LOST, Event.RELEASED])
def test_of_a_job_that_goes_on_nothing_is_deleted(book, start, tmp_path, event):
    claim = start(book)
    made(book, claim, tmp_path, (10, 20, 30))
    if event is not None:
        book.finish(claim.token, event)
    tidy_all(book, tmp_path)
    assert len(left(tmp_path, claim)) == 3


def test_what_ended_unseen_is_tidied_and_what_no_book_knows_is_left_alone(book, start, tmp_path):
    claim = start(book)
    made(book, claim, tmp_path, (10, 20, 30))
    for step in (1, 2):
        (tmp_path / "another-book's" / "a1" / folder_name(step)).mkdir(parents=True)
    book.finish(claim.token, Event.FAILED)
    tidy_all(book, tmp_path)
    assert left(tmp_path, claim) == ["a1/step_00000030"]
    assert len(list((tmp_path / "another-book's").glob("*/*"))) == 2
    tidy_all(book, tmp_path / "nowhere")
