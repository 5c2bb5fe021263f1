"""What the OpenAPI document says is true: its examples are sent, its schemas hold what the API answers."""

import pytest
from jsonschema_rs import Draft202012Validator

from api.examples import ORDERS, REFUSED_ORDERS
from api.problem_types import PROBLEM_TYPES

BODIES = ["/v1/jobs", "/v1/jobs/preview"]


@pytest.fixture
def document(client):
    return client.get("/openapi.json").json()


def body_of(document, path):
    return document["paths"][path]["post"]["requestBody"]["content"]["application/json"]


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: order.name)
@pytest.mark.parametrize(("path", "status"), [("/v1/jobs", 201), ("/v1/jobs/preview", 200)])
def test_an_example_of_an_order_is_taken(client, document, path, status, order):
    example = body_of(document, path)["examples"][order.name]["value"]
    answer = client.post(path, json=example)
    assert answer.status_code == status
    for field, value in example.items():
        assert_taken(answer.json()["spec"][field], value)


def assert_taken(taken, sent):
    """As it was sent, with defaults where nothing was."""
    if isinstance(sent, dict):
        for name, value in sent.items():
            assert_taken(taken[name], value)
    elif isinstance(sent, list):
        assert len(taken) == len(sent)
        for place, value in enumerate(sent):
            assert_taken(taken[place], value)
    else:
        assert taken == sent


@pytest.mark.parametrize("order", REFUSED_ORDERS, ids=lambda order: order.name)
@pytest.mark.parametrize("path", BODIES)
def test_an_example_of_a_refusal_is_what_the_api_answers(client, document, path, order):
    answer = client.post(path, json=order.body)
    responses = document["paths"][path]["post"]["responses"]
    content = responses[str(answer.status_code)]["content"]["application/problem+json"]
    assert answer.json() == content["examples"][order.name]["value"]


@pytest.mark.parametrize("path", BODIES)
def test_there_is_no_example_but_those_that_are_sent(document, path):
    assert list(body_of(document, path)["examples"]) == [order.name for order in ORDERS]
    shown = document["paths"][path]["post"]["responses"]["422"]["content"]["application/problem+json"]["examples"]
    assert list(shown) == [order.name for order in REFUSED_ORDERS]


def operations(document):
    return {
        (method.upper(), path): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


def test_operations_have_their_names_for_good(document):
    assert {key: operation["operationId"] for key, operation in operations(document).items()} == {
        ("POST", "/v1/jobs"): "submit_job",
        ("GET", "/v1/jobs"): "list_jobs",
        ("GET", "/v1/jobs/{job_id}"): "get_job",
        ("POST", "/v1/jobs/{job_id}/cancel"): "cancel_job",
        ("GET", "/v1/jobs/{job_id}/checkpoints"): "list_checkpoints",
        ("GET", "/v1/jobs/{job_id}/metrics"): "list_metrics",
        ("GET", "/v1/jobs/{job_id}/events"): "stream_events",
        ("POST", "/v1/jobs/preview"): "preview_job",
        ("GET", "/v1/catalog"): "get_catalog",
        ("GET", "/livez"): "livez",
        ("GET", "/readyz"): "readyz",
        ("GET", "/problems/{code}"): "describe_problem",
    }


def test_every_refusal_is_documented_as_a_problem(document):
    for operation in operations(document).values():
        for status, response in operation["responses"].items():
            if int(status) >= 400:
                (media_type,) = response["content"]
                assert media_type == "application/problem+json"
                assert response["content"][media_type]["schema"] == {"$ref": "#/components/schemas/Problem"}
                assert any(kind.uri in response["description"] for kind in PROBLEM_TYPES.values())


def test_the_data_of_events_is_documented(document):
    stream = document["paths"]["/v1/jobs/{job_id}/events"]["get"]["responses"]["200"]["content"]
    assert list(stream) == ["text/event-stream"]
    assert {"EventView", "ProgressEventView"} <= set(document["components"]["schemas"])


def test_what_the_api_answers_fits_its_schemas(client, worker, order, document):
    path = client.post("/v1/jobs", json=order).headers["location"]
    worker.train(worker.claim(), 40, train_loss=1.5)
    problem = client.get("/v1/jobs?limit=0").json()
    for name, value in [
        ("JobView", client.get(path).json()),
        ("JobList", client.get("/v1/jobs").json()),
        ("MetricList", client.get(f"{path}/metrics").json()),
        ("CheckpointList", client.get(f"{path}/checkpoints").json()),
        ("CatalogView", client.get("/v1/catalog").json()),
        ("ReadyView", client.get("/readyz").json()),
        ("Problem", problem),
    ]:
        schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
        Draft202012Validator(schema).validate(value)


def test_the_document_stays_the_same_when_it_is_asked_for_again(client, document):
    assert client.get("/openapi.json").json() == document
