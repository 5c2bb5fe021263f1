import json
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from starlette.testclient import TestClient

from api.app import create_app
from api.embedded.broker import find_broker
from api.previewer import Previewer


def test_livez_says_ok(client):
    assert client.get("/livez").json() == {"status": "ok"}


def test_readyz_names_what_is_missing(client, order):
    client.post("/v1/jobs/preview", json=order)  # so that the preview is loaded
    answer = client.get("/readyz")
    assert answer.status_code == 200
    assert answer.json() == {
        "status": "degraded",
        "checks": {
            "database": "ok",
            "redis": "does not answer: ConnectionError; orders wait until it does",
            "mlflow": "does not answer: ConnectError; workers keep what they record until it does",
            "workers": "no worker is alive; orders wait until one is",
            "preview": "ok",
        },
    }


@pytest.fixture
def redis_url(tmp_path):
    broker = find_broker(tmp_path)
    with subprocess.Popen(broker.command, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 20
        while not broker.answers():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield broker.url
        process.kill()


@pytest.fixture
def mlflow_url():
    """An address whose /health answers with the status that its list holds."""
    statuses = [200]

    class Health(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(statuses[0] if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_args):
            pass

    with HTTPServer(("127.0.0.1", 0), Health) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/", statuses
        server.shutdown()
        thread.join()


def test_readyz_is_ok_when_all_is_there(settings, redis_url, mlflow_url, order, worker):
    url, statuses = mlflow_url
    settings = settings.model_copy(
        update={"redis_url": type(settings)(redis_url=redis_url).redis_url, "mlflow_url": url}
    )
    worker.book.worker_seen("worker-1", "cpu")
    with TestClient(create_app(settings)) as client:
        client.post("/v1/jobs/preview", json=order)
        assert client.get("/readyz").json() == {
            "status": "ok",
            "checks": dict.fromkeys(("database", "redis", "mlflow", "workers", "preview"), "ok"),
        }
        statuses[0] = 503
        assert client.get("/readyz").json()["checks"]["mlflow"].startswith("answers 503;")


class TestWhileThePreviewLoads:
    @pytest.fixture
    def loads(self, monkeypatch):
        """The preview is loaded when this event is set."""
        event = threading.Event()
        load = Previewer._load

        def slowly(self):
            assert event.wait(60)
            return load(self)

        monkeypatch.setattr(Previewer, "_load", slowly)
        yield event
        event.set()

    @pytest.fixture
    def client(self, loads, settings):
        """A client that lets the preview load before it leaves, which waits for it."""
        with TestClient(create_app(settings)) as client:
            yield client
            loads.set()

    def test_everything_that_needs_no_preview_answers(self, client):
        assert client.get("/livez").status_code == 200
        assert client.get("/v1/jobs").json() == {"items": [], "next": None}
        assert client.get("/v1/catalog").status_code == 200
        assert client.get("/readyz").json()["checks"]["preview"] == "still loading; orders wait until it is there"

    def test_orders_wait_and_leave_the_others_their_threads(self, client, loads, order):
        answers = []
        orders = [
            threading.Thread(target=lambda: answers.append(client.post("/v1/jobs", json=order).status_code))
            for _ in range(45)  # more than there are threads
        ]
        for thread in orders:
            thread.start()
        assert client.get("/v1/jobs").json()["items"] == []
        assert answers == []
        loads.set()
        for thread in orders:
            thread.join()
        assert answers == [201] * 45


def test_a_preview_that_cannot_be_loaded_is_said(settings, order, monkeypatch):
    def broken(_self):
        raise ImportError("libtorch.so")

    monkeypatch.setattr(Previewer, "_load", broken)
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        assert client.post("/v1/jobs", json=order).status_code == 500
        assert client.get("/readyz").json()["checks"]["preview"] == "cannot be loaded: ImportError; orders fail"
        assert json.loads(client.get("/v1/jobs").text)["items"] == []
