import asyncio
import json
import time
from contextlib import ExitStack

import httpx
import pytest
from anyio import CapacityLimiter

from api import events
from worker.book import Book, BookUnavailable, Event


@pytest.fixture(autouse=True)
def look_often(monkeypatch):
    monkeypatch.setattr(events, "LOOK_EVERY_S", 0.01)


def parsed(text):
    """The events of a stream as (id, event, data); comments are left out."""
    found = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if fields:
            found.append((fields.get("id"), fields["event"], json.loads(fields["data"])))
    return found


@pytest.fixture
def ended(client, worker, order):
    """The address of a job that was trained and succeeded."""
    path = client.post("/v1/jobs", json=order).headers["location"]
    claim = worker.claim()
    worker.book.commit_checkpoint(claim.token, step=50, path="/x", sha256="ab" * 32, size=9)
    assert worker.book.finish(claim.token, Event.SUCCEEDED)
    return path


def test_an_ended_job_is_told_from_its_first_event_to_its_last(client, ended):
    answer = client.get(f"{ended}/events")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"
    told = parsed(answer.text)
    assert [(number, kind) for number, kind, _ in told] == [
        ("1", "submitted"),
        ("2", "dispatched"),
        ("3", "claimed"),
        ("4", "checkpoint"),
        ("5", "succeeded"),
    ]
    assert [data["seq"] for _, _, data in told] == [1, 2, 3, 4, 5]
    assert [data["state"] for _, _, data in told] == ["queued", "dispatched", "running", "running", "succeeded"]
    assert told[2][2]["data"]["worker"] == "worker-1"
    assert told[0][2]["at"].endswith("Z")


@pytest.mark.parametrize("batch", [1, 2, 5, 6])
def test_nothing_is_left_out_where_events_are_read_in_batches(client, ended, monkeypatch, batch):
    monkeypatch.setattr(events, "BATCH", batch)
    told = parsed(client.get(f"{ended}/events").text)
    assert [number for number, _, _ in told] == ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize(("last", "rest"), [(0, "12345"), (1, "2345"), (4, "5"), (5, ""), (2**31 - 1, "")])
def test_the_stream_goes_on_after_the_last_event_that_was_seen(client, ended, last, rest):
    told = parsed(client.get(f"{ended}/events", headers={"Last-Event-ID": str(last)}).text)
    assert "".join(number for number, _, _ in told) == rest


@pytest.mark.parametrize("last", ["abc", "-1", "1.5", "", str(2**31)])
def test_a_last_event_id_that_no_stream_gave_is_refused(client, ended, last):
    answer = client.get(f"{ended}/events", headers={"Last-Event-ID": last})
    assert answer.status_code == 422
    assert answer.json()["type"] == "/problems/invalid-parameter"
    assert answer.json()["errors"][0]["parameter"] == "last-event-id"


def test_a_job_is_followed_while_it_happens(server, worker, order):
    path = httpx.post(f"{server}/v1/jobs", json=order).headers["location"]
    told = []
    with httpx.stream("GET", f"{server}{path}/events") as stream:
        claim = None
        for line in stream.iter_lines():
            field, _, value = line.partition(": ")
            if field == "event":
                told.append(value)
            if value == "submitted":
                claim = worker.claim()
            elif value == "claimed":
                worker.train(claim, 50, train_loss=2.5)
            elif field == "data" and told[-1] == "progress" and json.loads(value)["metrics"]:
                progress = json.loads(value)
                worker.book.finish(claim.token, Event.SUCCEEDED)
    assert progress == {
        "state": "running",
        "step": 50,
        "steps": 100,
        "steps_per_s": 20.0,
        "eta_s": 2.5,
        "metrics": {"train/loss": 2.5},
    }
    assert [kind for kind in told if kind != "progress"] == ["submitted", "dispatched", "claimed", "succeeded"]
    assert told[-1] == "succeeded"


async def collected(book, job_id, until):
    """The events of `follow`, up to the one that `until` is true of."""
    told = []
    async for event in events.follow(book, job_id, 0, CapacityLimiter(1)):
        told.append(event)
        if until(event):
            break
    return told


def test_progress_is_told_when_there_is_some(worker, spec):
    job = worker.book.submit(spec).job
    claim = worker.claim()
    steps = iter(range(10, 40, 10))

    def train(event):
        if event.event != "progress":
            return False
        step = next(steps, None)
        if step is not None:
            worker.train(claim, step)
        return step is None

    told = asyncio.run(collected(worker.book, job.id, train))
    assert [event.data.step for event in told if event.event == "progress"] == [0, 10, 20, 30]


def test_a_stream_waits_for_the_book_when_it_is_away(worker, spec, monkeypatch):
    job = worker.book.submit(spec).job
    monkeypatch.setattr(events, "RETRY_AFTER_S", 0.01)
    read, fails = Book.job, iter([True, True])

    def away_at_first(self, job_id):
        if next(fails, False):
            raise BookUnavailable("the order book must answer")
        return read(self, job_id)

    monkeypatch.setattr(Book, "job", away_at_first)
    told = asyncio.run(collected(worker.book, job.id, lambda event: event.event == "submitted"))
    assert [event.comment or event.event for event in told] == [
        "the order book does not answer; waiting for it",
        "the order book does not answer; waiting for it",
        "submitted",
    ]


def test_a_quiet_stream_is_kept_awake(server, order, monkeypatch):
    monkeypatch.setattr("fastapi.routing._PING_INTERVAL", 0.05)
    path = httpx.post(f"{server}/v1/jobs", json=order).headers["location"]
    with httpx.stream("GET", f"{server}{path}/events") as stream:
        assert next(line for line in stream.iter_lines() if line.startswith(":")) == ": ping"


def test_a_watcher_who_leaves_is_forgotten(server, order, monkeypatch):
    looks = []
    read = Book.events
    monkeypatch.setattr(Book, "events", lambda self, *args: looks.append(args) or read(self, *args))
    path = httpx.post(f"{server}/v1/jobs", json=order).headers["location"]
    with httpx.stream("GET", f"{server}{path}/events") as stream:
        next(stream.iter_lines())
    quiet = 0
    while quiet < 20:  # a second in which nobody looked; the test's time-out is for a stream that goes on
        before = len(looks)
        time.sleep(0.05)
        quiet = quiet + 1 if len(looks) == before else 0
    assert looks


def test_many_watchers_leave_room_for_others(server, worker, order):
    path = httpx.post(f"{server}/v1/jobs", json=order).headers["location"]
    limits = httpx.Limits(max_connections=None)
    with httpx.Client(base_url=server, limits=limits, timeout=60) as client, ExitStack() as watchers:
        streams = [watchers.enter_context(client.stream("GET", f"{path}/events")) for _ in range(80)]
        lines = [stream.iter_lines() for stream in streams]
        assert [next(line) for line in lines] == ["event: submitted"] * 80
        assert client.get(path).json()["state"] == "queued"
        assert client.post("/v1/jobs", json=order).status_code == 201
        assert client.post(f"{path}/cancel").status_code == 202
        assert all("event: cancelled" in list(line) for line in lines)
