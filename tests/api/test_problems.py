import re

import pytest
from starlette.testclient import TestClient

from api.app import create_app
from api.problem_types import PROBLEM_TYPES
from worker.settings import Settings


@pytest.mark.parametrize("path", ["/nothing", "/v1", "/v1/jobs/", "/v1/jobs/1/2", "/v1/jobs/%00", "/docs/x"])
def test_an_unknown_address_is_a_problem(client, path):
    answer = client.get(path)
    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["type"] == "/problems/not-found"
    assert problem["detail"].startswith("there is nothing at /")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/v1/jobs", "GET, POST"),
        ("DELETE", "/v1/jobs/preview", "POST"),
        ("GET", "/v1/jobs/preview", "POST"),
        ("DELETE", "/v1/jobs/01a1fc17-8209-777d-bec6-07e256b0959f", "GET"),
        ("GET", "/v1/jobs/01a1fc17-8209-777d-bec6-07e256b0959f/cancel", "POST"),
        ("POST", "/v1/catalog", "GET"),
        ("POST", "/livez", "GET"),
    ],
)
def test_a_wrong_method_is_a_problem_that_names_the_right_ones(client, method, path, allowed):
    answer = client.request(method, path)
    assert answer.status_code == 405
    assert answer.headers["allow"] == allowed
    problem = answer.json()
    assert problem["type"] == "/problems/method-not-allowed"
    assert problem["detail"] == f"{path} does not take {method}; it takes {allowed}"


def test_a_bug_is_a_problem_without_its_traceback(client, order, monkeypatch):
    def broken(*_args, **_kwargs):
        raise RuntimeError("the secret of the house")

    monkeypatch.setattr("worker.book.Book.submit", broken)
    answer = client.post("/v1/jobs", json=order)
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json() == {
        "type": "/problems/internal-error",
        "title": "The laboratory failed",
        "status": 500,
        "detail": "the laboratory failed at this request; its log says why",
        "instance": "/v1/jobs",
    }


@pytest.fixture(params=["sqlite without tables", "postgres away"])
def client_without_book(request, tmp_path):
    """The API over a database that is not set up, or not there."""
    away = "postgresql://normcore@127.0.0.1:9/normcore"
    url = None if request.param.startswith("sqlite") else away
    settings = Settings(
        state_dir=tmp_path, hub=False, database_url=url, redis_url=None, mlflow_url="http://127.0.0.1:9"
    )
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/jobs"),
        ("GET", "/v1/jobs"),
        ("GET", "/v1/jobs/01a1fc17-8209-777d-bec6-07e256b0959f"),
        ("GET", "/v1/jobs/01a1fc17-8209-777d-bec6-07e256b0959f/events"),
        ("POST", "/v1/jobs/01a1fc17-8209-777d-bec6-07e256b0959f/cancel"),
        ("GET", "/readyz"),
    ],
)
def test_without_the_book_one_is_asked_to_try_again(client_without_book, order, method, path):
    answer = client_without_book.request(method, path, json=order if path == "/v1/jobs" else None)
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0
    assert answer.json()["type"] == "/problems/unavailable"
    assert "password" not in answer.text
    assert "127.0.0.1" not in answer.text


def test_what_needs_no_book_answers_without_it(client_without_book, order):
    assert client_without_book.get("/livez").status_code == 200
    assert client_without_book.get("/v1/catalog").status_code == 200
    assert client_without_book.post("/v1/jobs/preview", json=order).status_code == 200


def test_a_preview_needs_the_book_where_a_probe_names_a_job(client_without_book, order):
    body = order | {"probes": [{"kind": "interpolation", "job": "01a1fc17-8209-777d-bec6-07e256b0959f"}]}
    assert client_without_book.post("/v1/jobs/preview", json=body).status_code == 503


def test_what_a_request_held_is_quoted_whatever_it_was(client):
    answer = client.get("/v1/jobs", params={"state": "ü\u2028\x07💥", "ключ": "1"})
    assert answer.status_code == 422
    assert answer.content.isascii()
    assert [mistake["parameter"] for mistake in answer.json()["errors"]] == ["state", "ключ"]


@pytest.mark.parametrize("kind", PROBLEM_TYPES.values(), ids=str)
def test_every_type_is_an_address_that_explains_it(client, kind):
    answer = client.get(kind.uri)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert kind.title in answer.text
    assert kind.remedy in answer.text
    assert f"{kind.code}: {kind.status} " in answer.text


def test_a_type_that_does_not_exist_is_not_found(client):
    answer = client.get("/problems/teapot")
    assert answer.status_code == 404
    assert "there is no problem type teapot; there are malformed-json, " in answer.json()["detail"]


def test_codes_are_stable_words_in_kebab_case():
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", code) for code in PROBLEM_TYPES)
