import http.server
import socket
import threading

import httpx
import pytest

from api.client import ApiUnreachable, Client, RequestRefused
from api.views import EventView, ProgressEventView
from normcore.spec import MENU, JobSpec, kind_of
from worker.states import Desired, Event, State


@pytest.fixture
def client(server):
    with Client(server) as client:
        yield client


def test_order_can_be_a_mapping_a_spec_or_text(client, order):
    spec = JobSpec.model_validate(order)
    jobs = [client.submit(form) for form in (order, spec, spec.model_dump_json().encode())]
    assert [job.spec for job in jobs] == [spec] * 3
    assert len({job.id for job in jobs}) == 3
    assert client.job(jobs[0].id) == jobs[0]


def test_same_key_is_the_same_job(client, order):
    first, second = (client.submit(order, idempotency_key="mine", priority=2) for _ in range(2))
    assert first == second


def test_preview_orders_nothing(client, order):
    preview = client.preview(order)
    assert preview.num_parameters == 64 * 128 + 128 + 128 * 128 + 128 + 2 * 2 * 128 + 128 * 10 + 10
    assert list(client.jobs()) == []


def test_refusal_is_readable_and_has_every_mistake(client, order):
    with pytest.raises(RequestRefused) as refusal:
        client.submit(order | {"norm": {"kind": "group", "num_groups": 3}})
    assert refusal.value.problem.status == 422
    lines = str(refusal.value).splitlines()
    assert lines[0] == "The job cannot be built:"
    assert lines[1].startswith("  /norm/num_groups at blocks.0.norm: num_groups must divide num_features, got")


def test_job_that_is_not_there_is_refused(client):
    with pytest.raises(RequestRefused, match="there is no job 01a1fc43-9e4b-7e11-8c40-d921cd3c8afe"):
        client.job("01a1fc43-9e4b-7e11-8c40-d921cd3c8afe")


def test_jobs_are_listed_newest_first_through_all_pages(client, order, monkeypatch):
    monkeypatch.setattr("api.client.PAGE", 2)
    ids = [client.submit(order | {"seed": seed, "labels": {"half": str(seed % 2)}}).id for seed in range(5)]
    client.cancel(ids[0])
    assert [job.id for job in client.jobs()] == ids[::-1]
    assert [job.id for job in client.jobs(labels={"half": "1"})] == [ids[3], ids[1]]
    assert [job.id for job in client.jobs(states=[State.CANCELLED])] == [ids[0]]


def test_metrics_come_through_all_pages(client, order, worker):
    job = client.submit(order)
    claim = worker.claim()
    for step in range(1, 4):
        worker.train(claim, step, train_loss=1 / step, train_accuracy=step / 4)
    assert [(m.key, m.step, m.value) for m in client.metrics(job.id, "train/loss")] == [
        ("train/loss", 1, 1.0),
        ("train/loss", 2, 0.5),
        ("train/loss", 3, pytest.approx(1 / 3)),
    ]
    assert len(client.metrics(job.id)) == 6
    assert client.checkpoints(job.id) == []


def test_catalog_and_readiness(client):
    assert [part.kind for part in client.catalog().families["norm"]] == [kind_of(spec) for spec in MENU["norm"]]
    assert client.ready().checks["database"] == "ok"


def test_events_are_followed_to_the_end(client, order, worker, book):
    job = client.submit(order)
    claim = worker.claim()
    worker.train(claim, 40, train_loss=0.5)
    events = client.events(job.id)
    seen = [next(events) for _ in range(4)]
    assert [event.type for event in seen[:3]] == ["submitted", "dispatched", "claimed"]
    assert isinstance(seen[3], ProgressEventView)
    assert (seen[3].step, seen[3].metrics) == (40, {"train/loss": 0.5})
    assert book.finish(claim.token, Event.SUCCEEDED, None)
    (last,) = events
    assert isinstance(last, EventView)
    assert last.state is State.SUCCEEDED
    assert client.wait(job.id).state is State.SUCCEEDED


class Cutting(http.server.BaseHTTPRequestHandler):
    """Passes on to the real API, but cuts every stream of events after two of them."""

    def do_GET(self):
        asked = self.headers.get("Last-Event-ID")
        self.server.asked.append(asked)
        with httpx.stream("GET", self.server.real + self.path, headers={"Last-Event-ID": asked or "0"}) as stream:
            self.send_response(stream.status_code)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            ends = 0
            for line in stream.iter_lines():
                self.wfile.write(b"%x\r\n%s\n\r\n" % (len(line) + 1, line.encode()))
                ends += not line
                if ends == 2:
                    return  # without the last chunk: a connection that broke

    def log_message(self, *words):
        pass


def test_broken_stream_goes_on_after_the_last_event_without_loss_or_doubling(server, client, order, worker, book):
    job = client.submit(order)
    claim = worker.claim()
    assert book.finish(claim.token, Event.SUCCEEDED, None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Cutting) as proxy:
        proxy.real, proxy.asked = server, []
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        with Client(f"http://127.0.0.1:{proxy.server_port}") as through:
            seen = [event.seq for event in through.events(job.id)]
        proxy.shutdown()
        thread.join()
    assert seen == [1, 2, 3, 4]
    assert proxy.asked == [None, "2"]


def test_request_is_made_again_when_the_connection_fails(server, order, monkeypatch):
    with Client(server) as client:
        real, failures = client._http.request, [httpx.ConnectError("refused"), httpx.RemoteProtocolError("gone")]
        keys = []

        def unlucky(method, path, **request):
            keys.append(request["headers"]["Idempotency-Key"])
            if failures:
                # The order arrived, and its answer was lost.
                real(method, path, **request)
                raise failures.pop()
            return real(method, path, **request)

        with monkeypatch.context() as patched:
            patched.setattr(client._http, "request", unlucky)
            job = client.submit(order)
        assert (len(keys), len(set(keys))) == (3, 1)
        assert [other.id for other in client.jobs()] == [job.id]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_no_api_says_how_to_have_one(monkeypatch):
    monkeypatch.setattr("api.client.PAUSES_S", (0.0,))
    url = f"http://127.0.0.1:{free_port()}"
    with Client(url) as client, pytest.raises(ApiUnreachable, match=f"no laboratory answers at {url} .*`normcore up`"):
        client.catalog()
    with Client(url) as client, pytest.raises(ApiUnreachable, match="no laboratory answers at"):
        list(client.events("x", patience_s=0.0))


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://", ""])
def test_address_that_is_none_is_refused(url):
    with pytest.raises(ApiUnreachable, match="the API's address must look like http://host:8000, got"):
        Client(url)


class Stranger(http.server.BaseHTTPRequestHandler):
    """Another web server."""

    def do_GET(self):
        status = 200 if self.path == "/readyz" else 404
        self.send_response(status)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(b"<h1>Welcome</h1>")

    def log_message(self, *words):
        pass


def test_another_service_at_the_address_is_recognized():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stranger) as stranger:
        thread = threading.Thread(target=stranger.serve_forever)
        thread.start()
        with Client(f"http://127.0.0.1:{stranger.server_port}") as client:
            for ask in (client.ready, client.catalog):
                with pytest.raises(ApiUnreachable, match=r"answers (200|404) with text/html, which is not how"):
                    ask()
        stranger.shutdown()
        thread.join()


def test_cancelling_is_a_wish_that_the_job_shows(client, order, worker):
    job = client.submit(order)
    worker.claim()
    assert client.cancel(job.id).desired is Desired.CANCEL
