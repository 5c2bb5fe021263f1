"""Orders whose probes name another job."""

import pytest
from sqlalchemy import update

from worker.book import Event
from worker.tables import checkpoints

PATHS = ("/v1/jobs", "/v1/jobs/preview")


@pytest.fixture
def ended(client, book, worker, order):
    """Orders a job and ends it; its id."""

    def make(event=Event.SUCCEEDED, **changes):
        job_id = client.post("/v1/jobs", json=order | changes).json()["id"]
        claim = worker.claim()
        assert claim.job_id == job_id
        assert book.commit_checkpoint(
            claim.token, step=100, path="/jobs/a1/step_00000100", sha256="ab" * 32, size=9, kind="last"
        )
        assert book.finish(claim.token, event)
        return job_id

    return make


def naming(order, job_id, **changes):
    line = {"kind": "interpolation", "job": job_id}
    return order | {"seed": 1, "probes": [{"kind": "landscape"}, line]} | changes


def refused(client, body):
    """The only mistake of an order, which ordering and previewing name alike."""
    before = client.get("/v1/jobs").json()
    answers = [client.post(path, json=body) for path in PATHS]
    assert [answer.status_code for answer in answers] == [422, 422]
    assert {answer.json()["type"] for answer in answers} == {"/problems/unbuildable"}
    (ordered,), (previewed,) = (answer.json()["errors"] for answer in answers)
    assert ordered == previewed
    assert client.get("/v1/jobs").json() == before
    assert ordered["pointer"] == "/probes/1/job"
    return ordered["code"], ordered["detail"]


def test_a_job_that_succeeded_with_the_same_model_may_be_named(client, ended, order):
    # With other noise, data order, optimizer and number of steps.
    job_id = ended(noise={"kind": "santurkar"}, optimizer={"kind": "adamw"}, precision="float64", steps=200)
    answers = [client.post(path, json=naming(order, job_id)) for path in PATHS]
    assert [answer.status_code for answer in answers] == [201, 200]
    assert answers[0].json()["spec"]["probes"][1]["job"] == job_id


@pytest.mark.parametrize("job_id", ["0199aaaa-7d1e-7aaa-8123-5f0d9c1b2a3e", "no-uuid"])
def test_a_job_that_is_none_is_refused(client, order, job_id):
    assert refused(client, naming(order, job_id)) == (
        "no-such-job",
        f"job must be the id of a job of this laboratory, got {job_id}; GET /v1/jobs lists them",
    )


def test_what_can_be_no_id_is_refused_by_the_menu(client, order):
    answer = client.post("/v1/jobs", json=naming(order, "../a1"))
    assert answer.json()["type"] == "/problems/invalid-spec"
    assert answer.json()["errors"][0]["pointer"] == "/probes/1/job"


def test_a_job_that_has_not_succeeded_is_refused(client, ended, order):
    states = {ended(Event.DIVERGED): "diverged", client.post("/v1/jobs", json=order).json()["id"]: "queued"}
    for job_id, state in states.items():
        detail = f"got {job_id}, which is {state}; name one that has, or order this one once it has"
        said = ("job-not-succeeded", f"job must be one that has succeeded, {detail}")
        assert refused(client, naming(order, job_id)) == said


def test_a_job_whose_last_checkpoint_is_gone_is_refused_until_mlflow_has_it(client, book, ended, order):
    job_id = ended()
    with book.database.write() as connection:
        connection.execute(update(checkpoints).values(path=None))
    code, detail = refused(client, naming(order, job_id))
    assert code == "last-checkpoint-gone"
    assert detail.endswith(
        f"got {job_id}, whose stands neither on a worker's disk nor in MLflow; train it again, or name another"
    )
    book.set_mlflow_run(job_id, run_id="run", experiment_id="1")
    assert client.post("/v1/jobs", json=naming(order, job_id)).status_code == 201


@pytest.mark.parametrize(
    ("changes", "name", "theirs", "ours"),
    [
        ({"model": {"kind": "vgg"}, "data": {"kind": "digits"}}, "model.kind", '"vgg"', '"mlp"'),
        ({"model": {"kind": "mlp", "hidden": [8]}}, "model.hidden", "[8]", "[128, 128]"),
        ({"norm": {"kind": "layer"}}, "norm.kind", '"layer"', '"batch"'),
        ({"weight": {"kind": "spectral"}}, "weight.kind", '"spectral"', '"none"'),
        ({"data": {"kind": "digits", "size": 16}}, "data.shape", "[1, 16, 16]", "[1, 8, 8]"),
    ],
)
def test_a_job_of_another_model_is_refused(client, ended, order, changes, name, theirs, ours):
    job_id = ended(**changes)
    code, detail = refused(client, naming(order, job_id))
    assert code == "job-of-another-model"
    said = f"job must be one of the same model, got {name} {theirs} in {job_id} and {ours} here; "
    assert detail == said + "name one with the same model, norm, weight method and shape of data"


def test_it_is_told_beside_everything_else_that_is_wrong(client, order):
    answer = client.post("/v1/jobs", json=naming(order, "none", norm={"kind": "group", "num_groups": 7}))
    assert [mistake["code"] for mistake in answer.json()["errors"]] == ["groups-do-not-divide", "no-such-job"]
