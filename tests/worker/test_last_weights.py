"""Where the last weights of a job are found, on an order book and a disk without any trainer."""

import shutil
from pathlib import Path

import pytest
import torch

from normcore.records import Snapshot
from worker.book import Book, Event
from worker.checkpoint import save
from worker.last_weights import find


@pytest.fixture
def book(tmp_path, sqlite_template):
    shutil.copy(sqlite_template, tmp_path / "book.db")
    book = Book(f"sqlite:///{tmp_path / 'book.db'}")
    yield book
    book.close()


@pytest.fixture
def ended(book, start, tmp_path):
    """A job that succeeded at step 5 and has an earlier checkpoint too: its id, and the folder of the last one."""
    claim = start(book)
    for step, kind in ((3, "periodic"), (5, "last")):
        saved = save(tmp_path / "a1", Snapshot(step, {"model.weight": torch.full((2,), float(step))}, {}))
        book.commit_checkpoint(
            claim.token, step=step, path=str(saved.path), sha256=saved.sha256, size=saved.bytes, kind=kind
        )
    book.finish(claim.token, Event.SUCCEEDED)
    return claim.job_id, saved.path


def nowhere(run_id, row):
    return None


def test_it_is_the_last_checkpoint_on_this_disk(book, ended):
    job_id, path = ended
    assert find(book, job_id, nowhere) == path


@pytest.mark.parametrize("harm", ["gone", "torn"])
def test_it_comes_from_mlflow_where_this_disk_has_it_not_or_not_whole(book, ended, tmp_path, harm):
    job_id, path = ended
    elsewhere = Path(shutil.copytree(path, tmp_path / "elsewhere" / path.name))
    if harm == "gone":
        shutil.rmtree(path)
    else:
        (path / "model.safetensors").write_bytes(b"")
    assert find(book, job_id, nowhere) is None
    book.set_mlflow_run(job_id, run_id="run", experiment_id="1")
    asked = []

    def fetch(run_id, row):
        asked.append((run_id, row.step))
        return elsewhere

    assert find(book, job_id, fetch) == elsewhere
    assert asked == [("run", 5)]


def test_weights_other_than_those_committed_are_none(book, ended, tmp_path):
    job_id, path = ended
    other = save(tmp_path / "other", Snapshot(5, {"model.weight": torch.zeros(2)}, {})).path
    shutil.rmtree(path)
    assert find(book, job_id, lambda _run_id, _row: other) is None


def test_of_a_job_that_is_unknown_or_has_not_ended_there_are_none(book, start):
    claim = start(book)
    book.commit_checkpoint(claim.token, step=3, path="/a1/step_00000003", sha256="ab", size=1)
    assert find(book, claim.job_id, nowhere) is None
    assert find(book, "nobody", nowhere) is None
