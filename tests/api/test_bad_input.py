"""Whatever is wrong with an order, it is refused as a problem that says what, and nothing is stored."""

import json

import pytest
from sqlalchemy import func, select

from api.problem_types import PROBLEM_TYPES
from api.strict_json import MAX_BODY_BYTES
from worker.tables import metadata

JSON = {"content-type": "application/json"}
VGG = {"model": {"kind": "vgg", "width": 0.25}, "data": {"kind": "digits"}}
MLP = {"model": {"kind": "mlp"}, "data": {"kind": "digits", "size": 8}}


def rows(book):
    with book.database.read() as connection:
        return sum(connection.scalar(select(func.count()).select_from(table)) for table in metadata.sorted_tables)


@pytest.fixture(params=["/v1/jobs", "/v1/jobs/preview"])
def refused(request, client, book):
    """Send a body to where jobs are ordered or previewed; the problem that it is refused with."""

    def send(content, headers=JSON):
        answer = client.post(request.param, content=content, headers=headers)
        problem = answer.json()
        assert answer.headers["content-type"] == "application/problem+json"
        assert problem["status"] == answer.status_code
        kind = PROBLEM_TYPES[problem["type"].removeprefix("/problems/")]
        assert (problem["title"], problem["status"]) == (kind.title, kind.status)
        assert problem["instance"] == request.param
        assert rows(book) == 0
        return problem

    return send


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        (b"{", "the body is not JSON: Expecting property name"),
        (b'{"model": NaN}', "NaN is not a JSON number; send a finite one"),
        (b'{"optimizer": {"kind": "sgd", "lr": Infinity}}', "Infinity is not a JSON number"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "an integer lies outside 64 bits"),
        (b"[" * 100_000, "nested deeper than 32 levels"),
        (b'{"seed": 1, "seed": 2}', 'the key "seed" stands twice'),
        (b'{"labels": {"a": "\\u0000"}}', "holds the NUL character"),
        (b"\xff\xfe", "the body is not UTF-8"),
    ],
)
def test_what_is_not_json_is_refused(refused, content, detail):
    problem = refused(content)
    assert problem["type"] == "/problems/malformed-json"
    assert detail in problem["detail"]


@pytest.mark.parametrize(
    ("content", "pointer", "code", "detail"),
    [
        (b"", "", "missing", "the body must be given, got nothing"),
        (b"[]", "", "wrong-type", "the body must be an object, got a list of 0"),
        (b"{}", "/model", "missing", "model must be given, got nothing"),
        (
            b'{"model": {"kind": "mlp"}, "data": {"kind": "digits"}, "optimizer": {"kind": "sgd", "lr": 1e999}}',
            "/optimizer/lr",
            "finite-number",
            "got a number beyond the range of a double",
        ),
        (
            b'{"model": {"kind": "mlp"}, "data": {"kind": "digits"}, "optimizer": {"kind": "sgd", "lr": -1e999}}',
            "/optimizer/lr",
            "finite-number",
            "got a number beyond the range of a double",
        ),
    ],
)
def test_json_that_is_no_job_is_refused(refused, content, pointer, code, detail):
    problem = refused(content)
    assert problem["type"] == "/problems/invalid-spec"
    mistake = problem["errors"][0]
    assert (mistake["pointer"], mistake["code"]) == (pointer, code)
    assert detail in mistake["detail"]


@pytest.mark.parametrize(
    ("changes", "pointer", "detail"),
    [
        ({"norm": {"kind": "batchnorm"}}, "/norm/kind", "on offer: none, batch, ghost, sync"),
        ({"model": {"kind": "alexnet"}}, "/model/kind", 'there is no model of kind "alexnet"; on offer: mlp, vgg'),
        ({"data": {"kind": "imagenet"}}, "/data/kind", "on offer: digits, cifar10"),
        (
            {"norm": {"kind": "batch", "num_groups": 4}},
            "/norm/num_groups",
            "num_groups is a knob of group and evonorm_s0, not of batch",
        ),
        ({"batch_size": -1}, "/batch_size", "batch_size must be greater than or equal to 1, got -1"),
        ({"batch_size": 0}, "/batch_size", "batch_size must be greater than or equal to 1, got 0"),
        ({"model": {"kind": "mlp", "hidden": [-8]}}, "/model/hidden/0", "must be greater than or equal to 1, got -8"),
        ({"model": {"kind": "vgg", "width": -1}}, "/model/width", "model.width must be greater than 0, got -1"),
        ({"steps": "10"}, "/steps", 'steps must be an integer, got "10"'),
        ({"steps": 10.5}, "/steps", "steps must be an integer, got 10.5"),
        ({"foo": 1}, "/foo", "a job has no field foo"),
        ({"steps": 1, "epochs": 1}, "/epochs", "give steps or epochs, not both"),
    ],
)
def test_a_job_that_is_not_on_the_menu_is_refused(refused, changes, pointer, detail):
    problem = refused(json.dumps(MLP | changes))
    assert problem["type"] == "/problems/invalid-spec"
    (mistake,) = problem["errors"]
    assert mistake["pointer"] == pointer
    assert detail in mistake["detail"]
    assert problem["detail"] == mistake["detail"]


@pytest.mark.parametrize(
    ("job", "place", "values"),
    [
        (
            VGG | {"norm": {"kind": "group", "num_groups": 32}},
            ("/norm/num_groups", "groups-do-not-divide", "blocks.0.norm"),
            ["num_groups 32", "num_features 16"],
        ),
        (MLP | {"norm": {"kind": "instance"}}, ("/norm/kind", "one-pixel-map", "blocks.0.norm"), ["instance norm"]),
        (VGG | {"batch_size": 1}, ("/batch_size", "batch-of-one", "blocks.0.norm"), ["at least 2", "got 1"]),
        (
            VGG | {"data": {"kind": "digits", "size": 16}},
            ("/data/size", "image-too-small", None),
            ["32x32", "16x16", "set data.size to 32"],
        ),
        (MLP | {"batch_size": 1438}, ("/batch_size", "batch-larger-than-data", None), ["1438", "1437"]),
        (MLP | {"data": {"kind": "cifar10"}}, ("/data/kind", "dataset-not-found", None), ["uoft-cs/cifar10", "hub"]),
        (
            MLP | {"model": {"kind": "mlp", "hidden": [31000, 32000]}},
            ("/model", "too-many-parameters", "blocks.1.linear"),
            ["500,000,000", "got 994,"],
        ),
    ],
)
def test_a_job_that_cannot_be_built_is_refused(refused, job, place, values):
    problem = refused(json.dumps(job))
    assert problem["type"] == "/problems/unbuildable"
    (mistake,) = problem["errors"]
    assert (mistake["pointer"], mistake["code"], mistake.get("layer")) == place
    for value in values:
        assert value in mistake["detail"]


def test_every_reason_is_named(refused):
    job = MLP | {"norm": {"kind": "group", "num_groups": 24}, "batch_size": 5000}
    problem = refused(json.dumps(job))
    assert {mistake["code"] for mistake in problem["errors"]} == {"batch-larger-than-data", "groups-do-not-divide"}
    assert problem["detail"].startswith("2 things are wrong with the request; the first: a batch must fit")


def test_of_ten_thousand_mistakes_twenty_are_named(refused):
    problem = refused(json.dumps(MLP | {f"field_{n}": n for n in range(10_000)}))
    assert problem["detail"].startswith("10000 things are wrong")
    assert len(problem["errors"]) == 20


class TestBodySize:
    def padded(self, size):
        body = json.dumps(MLP).encode()
        return body + b" " * (size - len(body))

    def test_a_body_of_the_largest_size_is_read(self, client):
        answer = client.post("/v1/jobs", content=self.padded(MAX_BODY_BYTES), headers=JSON)
        assert answer.status_code == 201

    @pytest.mark.parametrize("size", [MAX_BODY_BYTES + 1, 2**20])
    def test_a_larger_one_is_refused(self, refused, size):
        assert refused(self.padded(size))["type"] == "/problems/body-too-large"

    def test_one_of_unknown_length_is_refused_before_all_of_it_is_read(self, refused):
        sent = []

        def endless():
            while len(sent) < 1000:
                sent.append(1)
                yield b" " * 2**16

        assert refused(endless())["type"] == "/problems/body-too-large"


@pytest.mark.parametrize(
    "declared", [None, "text/plain", "application/x-www-form-urlencoded", "application/json5", "json", "a/b/c;;=", ""]
)
def test_a_body_that_is_not_declared_as_json_is_refused(refused, declared):
    problem = refused(json.dumps(MLP), {} if declared is None else {"content-type": declared})
    assert problem["type"] == "/problems/unsupported-media-type"
    assert problem["detail"] == f"the body must be declared as application/json, got {declared or 'nothing'}"


def test_json_may_name_its_encoding(client):
    headers = {"content-type": "application/json; charset=utf-8"}
    assert client.post("/v1/jobs", content=json.dumps(MLP), headers=headers).status_code == 201


@pytest.mark.parametrize("query", ["priority=high", "priority=1001", "prioriti=1"])
def test_a_wrong_priority_is_refused_and_nothing_stored(client, book, query):
    answer = client.post(f"/v1/jobs?{query}", json=MLP)
    assert answer.status_code == 422
    assert answer.json()["type"] == "/problems/invalid-parameter"
    assert rows(book) == 0
