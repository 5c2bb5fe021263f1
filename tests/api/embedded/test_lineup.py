import http.server
import threading
import types

import pytest

from api.embedded.broker import find_broker
from api.embedded.lineup import answers, api_url, environment, lineup, listeners, mlflow_url
from worker.settings import Settings


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Settings from these variables and no others."""

    def settings(**variables):
        for name in ("REDIS_URL", "NORMCORE_REDIS_URL", "NORMCORE_MLFLOW_URL"):
            monkeypatch.delenv(name, raising=False)
        for name, value in ({"NORMCORE_STATE_DIR": str(tmp_path)} | variables).items():
            monkeypatch.setenv(name, value)
        return Settings()

    return settings


def named(services):
    return {service.name: service for service in services}


def test_whole_laboratory(make, tmp_path):
    settings = make(NORMCORE_API_PORT="8001", NORMCORE_MLFLOW_PORT="5001")
    broker = find_broker(tmp_path)
    services = named(lineup(settings, broker))
    assert set(services) == {"broker", "migrations", "api", "scheduler", "worker", "mlflow"}
    assert [(listener.who, listener.port) for listener in listeners(settings)] == [("the API", 8001), ("MLflow", 5001)]
    assert services["mlflow"].command[6:8] == ("--port", "5001")
    # The worker tells the book and MLflow its last words, so both outlive it; it is the broker's client to the end.
    assert services["worker"].stop_round < services["api"].stop_round < services["broker"].stop_round
    assert services["worker"].stop_round < services["mlflow"].stop_round
    assert services["worker"].stop_grace_s > settings.stop_grace_s
    made = environment(settings, broker, {})
    assert made["NORMCORE_REDIS_URL"] == broker.url
    assert made["NORMCORE_MLFLOW_URL"] == mlflow_url(settings) == "http://127.0.0.1:5001"
    assert made["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"


def test_mlflow_keeps_artifacts_in_the_state_folder_or_where_it_is_told(make, tmp_path):
    for variables, expected in (
        ({}, str(tmp_path / "mlflow" / "artifacts")),
        ({"NORMCORE_MLFLOW_ARTIFACTS": "s3://bucket/path"}, "s3://bucket/path"),
    ):
        command = named(lineup(make(**variables), None))["mlflow"].command
        assert command[command.index("--artifacts-destination") + 1] == expected


def test_slots_are_workers_with_names_of_their_own(make):
    services = named(lineup(make(NORMCORE_SLOTS="3", NORMCORE_WORKER_NAME="lab"), None))
    workers = {name: service for name, service in services.items() if name.startswith("worker")}
    names = {name: service.environment["NORMCORE_WORKER_NAME"] for name, service in workers.items()}
    assert names == {"worker-1": "lab-1", "worker-2": "lab-2", "worker-3": "lab-3"}
    said = types.SimpleNamespace(tail=lambda: "celery@x lab-2@host ready.")
    assert [service.is_ready(said) for service in workers.values()] == [False, True, False]


@pytest.mark.parametrize("name", ["REDIS_URL", "NORMCORE_REDIS_URL"])
def test_given_redis_is_used(make, name):
    settings = make(**{name: "redis://elsewhere:6379/1"})
    services = named(lineup(settings, None))
    assert "broker" not in services
    assert services["worker"].after == ("migrations",)
    assert environment(settings, None, {})["NORMCORE_REDIS_URL"] == "redis://elsewhere:6379/1"


def test_given_mlflow_is_used(make, tmp_path):
    settings = make(NORMCORE_MLFLOW_URL="http://elsewhere:5000")
    assert "mlflow" not in named(lineup(settings, None))
    assert [listener.who for listener in listeners(settings)] == ["the API"]
    assert environment(settings, None, {})["NORMCORE_MLFLOW_URL"] == "http://elsewhere:5000"
    assert not (tmp_path / "mlflow").exists()


def test_environment_needs_no_home_and_respects_the_persons(make, tmp_path):
    bare = environment(make(), None, {})
    assert (bare["HOME"], bare["MPLCONFIGDIR"]) == (f"{tmp_path}/home", f"{tmp_path}/cache/matplotlib")
    own = environment(make(), None, {"HOME": "/home/ada", "MPLCONFIGDIR": "/home/ada/.mpl", "HF_TOKEN": "x"})
    assert (own["HOME"], own["MPLCONFIGDIR"], own["HF_TOKEN"]) == ("/home/ada", "/home/ada/.mpl", "x")


def test_relative_folders_mean_the_same_for_every_service(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = environment(make(NORMCORE_STATE_DIR="var", NORMCORE_DATA_DIR="data"), None, {})
    assert (made["NORMCORE_STATE_DIR"], made["NORMCORE_DATA_DIR"]) == (f"{tmp_path}/var", f"{tmp_path}/data")


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8000"),
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://[::1]:8000"),
        ("lab", "http://lab:8000"),
    ],
)
def test_api_is_reached_where_it_listens(make, host, url):
    assert api_url(make(NORMCORE_API_HOST=host)) == url


class Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 503)
        self.end_headers()

    def log_message(self, *words):
        pass


def test_service_is_ready_when_it_answers_200():
    with http.server.HTTPServer(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        seen = [answers(f"{url}{path}")(None) for path in ("/health", "/readyz")]
        server.shutdown()
        thread.join()
    assert seen == [True, False]
    assert answers(f"{url}/health")(None) is False
