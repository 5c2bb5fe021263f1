"""What Prometheus is told: read back with its own parser, so that it is what Prometheus would read."""

from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from api.app import create_app
from worker.book import Event, Reason
from worker.spool import Spool


def scraped(client):
    """Every sample by its name and labels."""
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_an_empty_laboratory_says_that_it_is_empty(client):
    found = scraped(client)
    assert found["normcore_jobs", "queued"] == 0
    assert found["normcore_queued_jobs", "no-worker"] == 0
    assert found["normcore_schedulers",] == 0
    assert found["normcore_service_up", "redis"] == 0
    assert found["normcore_build_info", client.get("/openapi.json").json()["info"]["version"]] == 1
    assert found["process_resident_memory_bytes",] > 0


def test_orders_attempts_and_workers_are_counted(client, order, worker):
    for _ in range(3):
        client.post("/v1/jobs", json=order)
    assert scraped(client)["normcore_queued_jobs", "no-worker"] == 3
    lost = worker.claim()
    assert worker.book.finish(lost.token, Event.LOST, Reason("worker-lost", "gone"))
    running = worker.claim()
    worker.train(running, 40)
    found = scraped(client)
    assert found["normcore_jobs", "running"] == 1
    assert found["normcore_queued_jobs", "busy"] == 2
    assert found["normcore_workers", "cpu", "cpu", "busy"] == 1
    assert found["normcore_running_job_steps", running.job_id, "worker-1"] == 40
    assert found["normcore_running_job_progress_ratio", running.job_id, "worker-1"] == 0.4
    assert found["normcore_running_job_steps_per_second", running.job_id, "worker-1"] == 20
    assert found["normcore_running_job_heartbeat_age_seconds", running.job_id, "worker-1"] < 10
    assert found["normcore_attempts_started_total",] == 2
    assert found["normcore_attempts_ended_total", "lost", "worker-lost"] == 1
    assert found["normcore_job_wait_seconds_bucket", "+Inf"] == found["normcore_job_wait_seconds_count",] >= 1


def test_a_spool_of_a_job_that_has_ended_is_unsent(client, order, worker, settings):
    client.post("/v1/jobs", json=order)
    claim = worker.claim()
    Spool.create(settings.state_dir / "spool", job_id=claim.job_id, attempt=claim.attempt).close()
    assert scraped(client)["normcore_unsent_jobs",] == 0
    assert worker.book.finish(claim.token, Event.SUCCEEDED)
    assert scraped(client)["normcore_unsent_jobs",] == 1


def test_requests_are_counted_by_the_template_of_their_route(client, order):
    job = client.post("/v1/jobs", json=order).headers["location"]
    for path in (job, job, "/v1/jobs/00000000-0000-7000-8000-000000000000", "/nowhere/1", "/nowhere/2"):
        client.get(path)
    client.request("BREW", "/livez")
    client.post("/livez")
    found = scraped(client)
    requests = {key[1:]: value for key, value in found.items() if key[0] == "normcore_http_requests_total"}
    assert requests == {
        ("POST", "/v1/jobs", "201"): 1,
        ("GET", "/v1/jobs/{job_id}", "200"): 2,
        ("GET", "/v1/jobs/{job_id}", "404"): 1,
        ("GET", "other", "404"): 2,
        ("other", "/livez", "405"): 1,
        ("POST", "/livez", "405"): 1,
    }
    name = "normcore_http_request_duration_seconds"
    assert found[f"{name}_bucket", "+Inf", "GET", "/v1/jobs/{job_id}"] == 3
    assert found[f"{name}_count", "GET", "/v1/jobs/{job_id}"] == 3
    assert scraped(client)["normcore_http_requests_total", "GET", "/metrics", "200"] == 1


def test_a_request_that_breaks_the_laboratory_counts_as_an_error(client, monkeypatch):
    def broken(*_args, **_kwargs):
        raise ZeroDivisionError

    monkeypatch.setattr("worker.book.Book.jobs", broken)
    assert client.get("/v1/jobs").status_code == 500
    assert scraped(client)["normcore_http_requests_total", "GET", "/v1/jobs", "500"] == 1


def test_without_a_database_there_is_nothing_to_tell(settings, tmp_path):
    settings = settings.model_copy(update={"state_dir": tmp_path / "empty"})
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        answer = client.get("/metrics")
    assert answer.status_code == 503
    assert answer.json()["type"] == "/problems/unavailable"


def test_it_is_no_operation_of_the_api(client):
    assert "/metrics" not in client.get("/openapi.json").json()["paths"]
