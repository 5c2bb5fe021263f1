"""A worker's presence: what it touches, and when."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from worker.book import Book, BookUnavailable
from worker.pools import Pool
from worker.presence import Presence


def test_the_beat_is_of_the_words_that_the_order_book_heard(
    book: Book, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., None]
) -> None:
    beat, draining = tmp_path / "beat", threading.Event()
    presence = Presence(book, "w", "cpu", Pool(), heartbeat_s=0.01, draining=draining, beat=beat)
    presence.announce()
    assert [worker.name for worker in book.workers() if worker.live] == ["w"]
    assert beat.exists()

    def away(*args: object, **kwargs: object) -> None:
        raise BookUnavailable("away")

    with monkeypatch.context() as patched:
        patched.setattr(book, "worker_seen", away)
        beat.unlink()
        presence.start()
        assert not draining.wait(0.1)
        assert not beat.exists()
    eventually(beat.exists)
    draining.set()
    presence.join()
