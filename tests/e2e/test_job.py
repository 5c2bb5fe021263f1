"""A job's whole way over HTTP: what a person orders, and what the API, MLflow and the disk then hold."""

from __future__ import annotations

import json
import time
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from api.client import Client
from api.views import JobView
from tests.e2e.conftest import Laboratory
from worker.states import State

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("laboratory"), pytest.mark.timeout(600)]

SPEC: dict[str, Any] = {
    "model": {"kind": "vgg", "width": 0.0625},
    "norm": {"kind": "batch"},
    "noise": {"kind": "santurkar"},
    "data": {"kind": "digits"},
    "optimizer": {"kind": "sgd", "lr": 0.05, "momentum": 0.5},
    "batch_size": 32,
    "steps": 400,
    "checkpoint_every": 40,
    "evaluate_every": 100,
    "deterministic": True,
    "probes": [{"kind": "landscape", "every": 50, "points": 4}],
    "labels": {"course": "6.867"},
}
MEASURED = ("time/", "memory/", "probe/overhead")
"""Curves of the machine, which differ from one run to the next."""


def test_a_job_whose_trainer_and_worker_are_killed_ends_as_one_that_was_left_alone(laboratory: Laboratory) -> None:
    client = laboratory.client
    undisturbed = client.wait(client.submit(SPEC).id)
    assert undisturbed.state is State.SUCCEEDED, undisturbed.reason

    job = client.submit(SPEC | {"labels": {"killed": "twice"}})
    reach(client, job.id, 60)
    assert laboratory.kill("worker.trainer")
    reach(client, job.id, 150, attempt=2)
    assert laboratory.kill("worker.run")
    job = client.wait(job.id)

    assert job.state is State.SUCCEEDED, job.reason
    assert [attempt.outcome for attempt in job.attempts] == ["lost", "lost", "succeeded"]
    resumed = [attempt.resumed_from or 0 for attempt in job.attempts[1:]]
    assert resumed[0] >= 40
    assert resumed[1] >= 120
    assert client.checkpoints(job.id)[-1].sha256 == client.checkpoints(undisturbed.id)[-1].sha256
    assert curves(client, job.id) == curves(client, undisturbed.id)
    assert_recorded_once(laboratory, job)


def test_the_run_holds_parameters_curves_figure_checkpoints_and_note(laboratory: Laboratory) -> None:
    client = laboratory.client
    job = client.wait(client.submit(SPEC | {"steps": 60, "seed": 3}).id)
    run = finished_run(laboratory, job)
    parameters = {parameter["key"]: parameter["value"] for parameter in run["data"]["params"]}
    tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}

    assert run["info"]["run_name"] == "vgg11w0.0625 batch+noise bs32 lr0.05 seed3"
    assert parameters["norm.kind"] == "batch"
    assert parameters["noise.mean_range"] == "0.5"
    assert tags["course"] == "6.867"
    assert tags["mlflow.note.content"]
    wanted = {"checkpoints/step_00000060/model.safetensors", "checkpoints/step_00000060/state.json"}
    eventually(lambda: wanted | {"figures/landscape.png", "readings/landscape.npz"} <= artifacts(laboratory, run))
    assert_recorded_once(laboratory, job)


def test_a_running_job_is_cancelled_and_says_so_everywhere(laboratory: Laboratory) -> None:
    client = laboratory.client
    job = client.submit(SPEC | {"steps": 100_000})
    reach(client, job.id, 5)
    client.cancel(job.id)
    job = client.wait(job.id)

    assert job.state is State.CANCELLED
    assert client.checkpoints(job.id)[-1].step == job.progress.step
    assert finished_run(laboratory, job)["info"]["status"] == "KILLED"


def test_a_loss_that_leaves_the_finite_numbers_is_a_result(laboratory: Laboratory) -> None:
    client = laboratory.client
    job = client.submit(SPEC | {"norm": {"kind": "none"}, "optimizer": {"kind": "sgd", "lr": 1e5}})
    job = client.wait(job.id)

    assert job.state is State.DIVERGED
    assert job.reason is not None
    assert "step" in job.reason.detail
    assert len(job.attempts) == 1


def reach(client: Client, job_id: str, step: int, attempt: int = 1) -> None:
    """Return when the job has come this far, in this attempt or a later one."""

    def there() -> bool:
        job = client.job(job_id)
        assert job.state in {State.QUEUED, State.DISPATCHED, State.RUNNING}, job.reason
        return len(job.attempts) >= attempt and job.progress.step >= step

    eventually(there)


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline, "it did not come about within four minutes"
        time.sleep(0.02)


def curves(client: Client, job_id: str) -> dict[tuple[str, int], float]:
    points = client.metrics(job_id)
    return {(point.key, point.step): point.value for point in points if not point.key.startswith(MEASURED)}


def finished_run(laboratory: Laboratory, job: JobView) -> dict[str, Any]:
    """The job's run, once MLflow shows its end; the book may know the end before it knows the run."""
    eventually(lambda: laboratory.client.job(job.id).links.mlflow is not None)
    link = laboratory.client.job(job.id).links.mlflow
    assert link is not None
    run_id = link.split("/runs/")[1].partition("?")[0]

    def run() -> Any:
        return mlflow(laboratory, "runs/get", run_id=run_id)["run"]

    eventually(lambda: run()["info"]["status"] not in {"RUNNING", "SCHEDULED"})
    return dict(run())


def assert_recorded_once(laboratory: Laboratory, job: JobView) -> None:
    """MLflow holds each point of the job's curves, and none twice.

    Curves of the machine have their points where a window of steps happened to end; an attempt that goes over steps
    again ends its windows elsewhere, and those points MLflow does not take.
    """
    run = finished_run(laboratory, job)
    points = laboratory.client.metrics(job.id)
    for key, count in Counter(point.key for point in points).items():
        history = mlflow(laboratory, "metrics/get-history", run_id=run["info"]["run_id"], metric_key=key)["metrics"]
        steps = [int(metric.get("step", 0)) for metric in history]
        assert len(steps) == len(set(steps)), key
        assert len(steps) == count or key.startswith(MEASURED), key


def artifacts(laboratory: Laboratory, run: dict[str, Any], path: str = "") -> set[str]:
    listed = mlflow(laboratory, "artifacts/list", run_id=run["info"]["run_id"], path=path).get("files", [])
    files = {file["path"] for file in listed if not file.get("is_dir")}
    return files.union(*(artifacts(laboratory, run, file["path"]) for file in listed if file.get("is_dir")))


def mlflow(laboratory: Laboratory, what: str, **query: str) -> dict[str, Any]:
    url = f"{laboratory.mlflow_url}/api/2.0/mlflow/{what}?{urllib.parse.urlencode(query)}"
    with urllib.request.urlopen(url, timeout=30) as answer:
        return dict(json.load(answer))
