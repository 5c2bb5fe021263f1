import io
import threading

import pytest
from rich.console import Console
from rich.text import Text

from api.client import Client
from api.watch import Bars, Glimpse, describe, watch
from worker.book import Reason
from worker.states import Event, State


@pytest.fixture
def client(server):
    with Client(server) as client:
        yield client


def console(*, terminal=False):
    return Console(file=io.StringIO(), force_terminal=terminal, width=160, highlight=False)


def said(console):
    return console.file.getvalue()


def glimpse(state, step, **metrics):
    return Glimpse("mlp batch", state, step, 100, 20.0, 4.0, {k.replace("_", "/"): v for k, v in metrics.items()})


def test_lines_are_said_when_the_state_changes_and_then_seldom():
    out = console()
    with Bars(out) as bars:
        for state, step in [(State.QUEUED, 0), (State.QUEUED, 0), (State.RUNNING, 1), (State.RUNNING, 2)]:
            bars.show("job", glimpse(state, step))
        bars.show("job", glimpse(State.SUCCEEDED, 100, train_loss=0.25, test_accuracy=0.5))
    assert said(out).splitlines() == [
        "mlp batch: queued  step 0/100",
        "mlp batch: 20/s 0:04 left  step 1/100",
        "mlp batch: succeeded  step 100/100  loss 0.250 test 0.500",
    ]


def test_running_job_is_heard_of_again_after_a_while(monkeypatch):
    monkeypatch.setattr("api.watch.QUIET_S", 0.0)
    out = console()
    with Bars(out) as bars:
        for step in (1, 2, 3):
            bars.show("job", glimpse(State.RUNNING, step))
    assert len(said(out).splitlines()) == 3


def test_terminal_has_a_bar_for_each_job():
    out = console(terminal=True)
    with Bars(out) as bars:
        bars.show("a", glimpse(State.RUNNING, 30, train_loss=0.5))
        bars.show("b", glimpse(State.QUEUED, 0))
        bars.show("a", glimpse(State.RUNNING, 60, train_loss=0.25))
    first, second = Text.from_ansi(said(out).split("\x1b[2K")[-1]).plain.splitlines()[:2]
    assert first.split()[:2] == ["mlp", "batch"]
    assert first.split()[3:] == ["60/100", "loss", "0.250", "20/s", "0:04", "left"]
    assert second.split()[-2:] == ["0/100", "queued"]


def test_watching_ends_with_the_job_and_says_how(client, order, worker, book):
    job = client.submit(order)
    out = console()

    def work():
        claim = worker.claim()
        worker.train(claim, 100, train_loss=0.125, test_accuracy=0.75)
        assert book.finish(claim.token, Event.DIVERGED, Reason("diverged", "the loss at step 101 is infinite"))

    thread = threading.Thread(target=work)
    thread.start()
    ended = watch(client, job, out)
    thread.join()
    assert ended.state is State.DIVERGED
    assert said(out).splitlines()[-3:] == [
        "mlp128x128 batch bs128 lr0.1 seed0: diverged, the loss at step 101 is infinite",
        "  test/accuracy 0.75",
        "  train/loss 0.125",
    ]


def test_watching_a_job_that_waits_for_a_worker_says_so(client, order):
    job = client.submit(order)
    client.cancel(job.id)
    out = console()
    assert watch(client, job, out).state is State.CANCELLED
    assert said(out).splitlines()[0] == "The job waits for a worker; none is alive"


def test_description_counts_attempts(client, order, worker, book):
    job = client.submit(order)
    for _ in range(2):
        assert book.finish(worker.claim().token, Event.RELEASED, None)
    assert "  2 attempts" in describe(client.job(job.id)).splitlines()
