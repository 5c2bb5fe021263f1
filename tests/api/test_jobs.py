from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from normcore.spec import JobSpec
from worker.book import Desired, Event, Reason, State


def test_an_order_is_stored_queued_and_found_at_its_location(client, book, order):
    answer = client.post("/v1/jobs", json=order)
    assert answer.status_code == 201
    job = answer.json()
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}" == job["links"]["self"]
    assert client.get(answer.headers["location"]).json() == job
    stored = book.job(job["id"])
    assert (stored.state, stored.spec) == (State.QUEUED, JobSpec.model_validate(order))


def test_a_job_has_the_shape_that_is_promised(client, order):
    job = client.post("/v1/jobs", json=order).json()
    assert list(job) == [
        *("id", "state", "desired", "name", "spec", "progress", "metrics", "attempts", "study_id"),
        *("created_at", "started_at", "finished_at", "reason", "waits", "links"),
    ]
    assert UUID(job["id"]).version == 7
    assert job["state"] == "queued"
    assert job["desired"] == "run"
    assert job["name"] == "mlp128x128 batch bs128 lr0.1 seed0"
    assert job["spec"]["norm"] == {"kind": "batch", "eps": 1e-5, "momentum": 0.1, "estimator": "ema", "affine": True}
    assert job["progress"] == {"step": 0, "steps": 100, "epoch": 0.0, "steps_per_s": None, "eta_s": None}
    assert job["metrics"] == {}
    assert job["attempts"] == []
    assert job["links"] == {
        "self": f"/v1/jobs/{job['id']}",
        "events": f"/v1/jobs/{job['id']}/events",
        "metrics": f"/v1/jobs/{job['id']}/metrics",
        "checkpoints": f"/v1/jobs/{job['id']}/checkpoints",
        "mlflow": None,
    }
    assert [job[name] for name in ("study_id", "started_at", "finished_at", "reason")] == [None] * 4
    created = datetime.fromisoformat(job["created_at"])
    assert job["created_at"].endswith("Z")
    assert abs(datetime.now(UTC) - created) < timedelta(minutes=1)


def test_a_job_that_no_worker_has_the_devices_for_says_so_when_it_is_ordered_and_as_long_as_it_waits(
    client, book, order
):
    book.worker_seen("w", "cpu", processes=2)
    job = client.post("/v1/jobs", json=order | {"devices": 4}).json()
    assert job["waits"] == {
        "code": "too-few-devices",
        "detail": "waits for a worker that lets a job use 4 devices; the largest lets it use 2",
    }
    assert client.get(job["links"]["self"]).json() == client.get("/v1/jobs").json()["items"][0] == job
    book.worker_seen("v", "cpu", processes=4)
    assert client.get(job["links"]["self"]).json()["waits"] is None


def test_the_spec_of_a_job_can_be_ordered_again(client, order):
    first = client.post("/v1/jobs", json=order).json()
    again = client.post("/v1/jobs", json=first["spec"])
    assert again.status_code == 201
    assert again.json()["spec"] == first["spec"]
    assert again.json()["id"] != first["id"]


def test_a_running_job_tells_how_it_stands(client, worker, order):
    job_id = client.post("/v1/jobs", json=order).json()["id"]
    claim = worker.claim()
    worker.train(claim, 40, train_loss=1.5, train_accuracy=0.25)
    worker.book.set_mlflow_run(job_id, run_id="abc", experiment_id="7")
    job = client.get(f"/v1/jobs/{job_id}").json()
    assert job["state"] == "running"
    assert job["progress"] == {"step": 40, "steps": 100, "epoch": 40 / 11, "steps_per_s": 20.0, "eta_s": 3.0}
    assert job["metrics"] == {"train/loss": 1.5, "train/accuracy": 0.25}
    (attempt,) = job["attempts"]
    assert datetime.fromisoformat(attempt.pop("started_at")) >= datetime.fromisoformat(job["started_at"])
    assert attempt == {
        "n": 1,
        "worker": "worker-1",
        "ended_at": None,
        "outcome": None,
        "reason": None,
        "resumed_from": 0,
        "last_step": None,
        "resume_verified": None,
    }
    link = "http://mlflow.example:5000/#/experiments/7/runs/abc?workflowType=machine_learning"
    assert job["links"]["mlflow"] == link


def test_a_failed_job_says_why(client, worker, order):
    job_id = client.post("/v1/jobs", json=order).json()["id"]
    claim = worker.claim()
    assert worker.book.finish(claim.token, Event.FAILED, Reason("user-error", "ValueError: no"))
    job = client.get(f"/v1/jobs/{job_id}").json()
    assert job["state"] == "failed"
    assert job["reason"] == {"code": "user-error", "detail": "ValueError: no"}
    assert job["attempts"][0]["reason"] == job["reason"]
    assert datetime.fromisoformat(job["finished_at"]) >= datetime.fromisoformat(job["started_at"])
    assert job["progress"]["eta_s"] is None


class TestIdempotencyKey:
    def test_the_same_order_is_stored_once_and_answered_again(self, client, order):
        headers = {"Idempotency-Key": "my-order-1"}
        first, second = (client.post("/v1/jobs", json=order, headers=headers) for _ in range(2))
        assert (first.status_code, second.status_code) == (201, 200)
        assert second.json() == first.json()
        assert second.headers["location"] == first.headers["location"]
        assert len(client.get("/v1/jobs").json()["items"]) == 1

    def test_defaults_written_out_are_the_same_order(self, client, order):
        headers = {"Idempotency-Key": "my-order-1"}
        first = client.post("/v1/jobs", json=order, headers=headers)
        second = client.post("/v1/jobs", json=first.json()["spec"], headers=headers)
        assert (second.status_code, second.json()["id"]) == (200, first.json()["id"])

    def test_another_order_is_a_conflict_and_not_stored(self, client, order):
        headers = {"Idempotency-Key": "my-order-1"}
        first = client.post("/v1/jobs", json=order, headers=headers).json()
        answer = client.post("/v1/jobs", json={**order, "seed": 1}, headers=headers)
        assert answer.status_code == 422
        assert answer.json()["type"] == "/problems/idempotency-conflict"
        assert f"of job {first['id']}; send a new key" in answer.json()["detail"]
        assert len(client.get("/v1/jobs").json()["items"]) == 1

    @pytest.mark.parametrize("key", ["", "x" * 256, b"caf\xc3\xa9"])
    def test_a_key_is_a_printable_word(self, client, book, order, key):
        answer = client.post("/v1/jobs", json=order, headers={"Idempotency-Key": key})
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["parameter"] == "idempotency-key"
        assert book.jobs().items == ()


def test_a_higher_priority_is_dispatched_first(client, worker, order):
    client.post("/v1/jobs", json=order)
    urgent = client.post("/v1/jobs?priority=10", json=order).json()["id"]
    assert worker.claim().job_id == urgent


class TestList:
    def test_pages_hold_every_job_once_the_newest_first(self, client, order):
        ordered = [client.post("/v1/jobs", json={**order, "seed": seed}).json() for seed in range(5)]
        seen, cursor = [], ""
        while cursor is not None:
            page = client.get(f"/v1/jobs?limit=2{cursor and f'&cursor={cursor}'}").json()
            assert set(page) == {"items", "next"}
            seen += page["items"]
            cursor = page["next"]
        assert seen == ordered[::-1]

    def test_jobs_are_found_by_state(self, client, worker, order):
        waiting, running = (client.post(f"/v1/jobs?priority={n}", json=order).json()["id"] for n in (0, 1))
        worker.claim()

        def ids(query):
            return [job["id"] for job in client.get(f"/v1/jobs?{query}").json()["items"]]

        assert ids("state=running") == [running]
        assert ids("state=queued") == [waiting]
        assert ids("state=queued&state=running") == [running, waiting]
        assert ids("state=failed") == []

    def test_jobs_are_found_by_all_of_the_labels(self, client, order):
        for labels in ({"course": "a:b"}, {"course": "a:b", "week": "2"}, {}):
            client.post("/v1/jobs", json={**order, "labels": labels})

        def labels(query):
            return [job["spec"]["labels"] for job in client.get(f"/v1/jobs?{query}").json()["items"]]

        assert labels("label=course:a:b") == [{"course": "a:b", "week": "2"}, {"course": "a:b"}]
        assert labels("label=course:a:b&label=week:2") == [{"course": "a:b", "week": "2"}]
        assert labels("label=course:x") == []

    @pytest.mark.parametrize(
        ("query", "parameter", "detail"),
        [
            ("limit=0", "limit", 'limit must be greater than or equal to 1, got "0"'),
            ("limit=201", "limit", 'limit must be less than or equal to 200, got "201"'),
            ("limit=ten", "limit", 'limit must be an integer, got "ten"'),
            ("limit=1e3", "limit", "limit must be an integer"),
            (
                "state=done",
                "state",
                "state must be 'queued', 'dispatched', 'running', 'paused', 'succeeded', 'diverged'",
            ),
            ("state=", "state", "state must be 'queued'"),
            ("label=course", "label", "label must be key:value, got 'course'"),
            ("label=:a", "label", "label must be key:value, got ':a'"),
            ("label=a:%00", "label", "label must be key:value"),
            ("label=a:1&label=a:2", "label", "label a must be asked for once, got '1' and '2'"),
            ("cursor=abc", "cursor", "a cursor must come from a page's `next`, got 'abc'; start without one"),
            ("cursor=", "cursor", "a cursor must come from a page's `next`"),
            ("status=queued", "status", "there is no parameter status"),
        ],
    )
    def test_what_cannot_be_asked_is_refused(self, client, query, parameter, detail):
        answer = client.get(f"/v1/jobs?{query}")
        assert answer.status_code == 422
        problem = answer.json()
        assert problem["type"] == "/problems/invalid-parameter"
        assert problem["errors"][0]["parameter"] == parameter
        assert detail in problem["errors"][0]["detail"]


class TestCancel:
    def test_a_waiting_job_is_cancelled_at_once(self, client, order):
        path = client.post("/v1/jobs", json=order).headers["location"]
        answer = client.post(f"{path}/cancel")
        assert answer.status_code == 202
        assert (answer.json()["state"], answer.json()["desired"]) == ("cancelled", "cancel")
        assert client.get(path).json() == answer.json()

    def test_a_running_job_is_wished_to_stop(self, client, worker, order):
        path = client.post("/v1/jobs", json=order).headers["location"]
        claim = worker.claim()
        answer = client.post(f"{path}/cancel")
        assert (answer.status_code, answer.json()["state"], answer.json()["desired"]) == (202, "running", "cancel")
        assert worker.book.renew(claim.token).desired is Desired.CANCEL

    def test_cancelling_twice_changes_nothing(self, client, order):
        path = client.post("/v1/jobs", json=order).headers["location"]
        first, second = (client.post(f"{path}/cancel") for _ in range(2))
        assert (second.status_code, second.json()) == (202, first.json())

    @pytest.mark.parametrize("event", [Event.SUCCEEDED, Event.DIVERGED, Event.FAILED])
    def test_a_job_that_ended_otherwise_is_a_conflict_and_stays_as_it_is(self, client, worker, order, event):
        path = client.post("/v1/jobs", json=order).headers["location"]
        worker.book.finish(worker.claim().token, event)
        answer = client.post(f"{path}/cancel")
        assert answer.status_code == 409
        assert answer.json()["type"] == "/problems/already-ended"
        assert f"which is {event.value}" in answer.json()["detail"]
        assert client.get(path).json()["state"] == event.value


def test_checkpoints_are_listed_by_step(client, worker, order):
    path = client.post("/v1/jobs", json=order).headers["location"]
    claim = worker.claim()
    for step, kind in ((25, "best"), (50, "periodic"), (75, "best"), (100, "last")):
        facts = {"path": f"/x/{step}", "sha256": "ab" * 32, "size": 9, "kind": kind, "best": kind == "best"}
        worker.book.commit_checkpoint(claim.token, step=step, **facts)
    assert client.get(f"{path}/checkpoints").json() == {
        "items": [
            {"step": 25, "sha256": "ab" * 32, "bytes": 9, "kind": "best", "best": False},
            {"step": 50, "sha256": "ab" * 32, "bytes": 9, "kind": "periodic", "best": False},
            {"step": 75, "sha256": "ab" * 32, "bytes": 9, "kind": "best", "best": True},
            {"step": 100, "sha256": "ab" * 32, "bytes": 9, "kind": "last", "best": False},
        ],
        "next": None,
    }


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", ""), ("POST", "/cancel"), ("GET", "/checkpoints"), ("GET", "/metrics"), ("GET", "/events")],
)
class TestNoSuchJob:
    def test_an_id_that_no_job_has_is_not_found(self, client, method, path):
        job_id = uuid4()
        answer = client.request(method, f"/v1/jobs/{job_id}{path}")
        assert answer.status_code == 404
        problem = answer.json()
        assert problem["type"] == "/problems/unknown-job"
        assert problem["detail"] == f"there is no job {job_id}; GET /v1/jobs lists those that there are"
        assert problem["instance"] == f"/v1/jobs/{job_id}{path}"

    @pytest.mark.parametrize("job_id", ["1", "abc", "%00", "%2e%2e", "0" * 4000, "' OR 1=1", "ä"])
    def test_an_id_that_is_no_uuid_is_not_found(self, client, method, path, job_id):
        answer = client.request(method, f"/v1/jobs/{job_id}{path}")
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/problem+json"
