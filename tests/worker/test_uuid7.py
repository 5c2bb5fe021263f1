import time
import uuid

from worker.uuid7 import uuid7


def test_an_id_is_a_uuid_of_version_7_that_carries_its_millisecond():
    before = time.time_ns() // 1_000_000
    made = uuid.UUID(uuid7())
    after = time.time_ns() // 1_000_000
    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    assert before <= made.int >> 80 <= after


def test_ids_sort_by_time_and_never_meet(monkeypatch):
    clock = iter(range(1_700_000_000_000_000_000, 1_700_000_200_000_000_000, 1_000_000))
    monkeypatch.setattr("worker.uuid7.time.time_ns", lambda: next(clock))
    made = [uuid7() for _ in range(2000)]
    assert made == sorted(made)
    monkeypatch.setattr("worker.uuid7.time.time_ns", lambda: 1_700_000_000_000_000_000)
    assert len({uuid7() for _ in range(2000)}) == 2000
