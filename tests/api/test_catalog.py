import pytest
from jsonschema_rs import Draft202012Validator

from normcore.spec import MENU, JobSpec, kind_of

JOB = {"model": {"kind": "mlp"}, "data": {"kind": "digits"}}


@pytest.fixture
def catalog(client):
    answer = client.get("/v1/catalog")
    assert answer.status_code == 200
    return answer.json()


def test_the_catalogue_is_the_menu(catalog):
    kinds = {family: [part["kind"] for part in parts] for family, parts in catalog["families"].items()}
    assert kinds == {family: [kind_of(spec) for spec in parts] for family, parts in MENU.items()}


def test_every_part_has_a_sentence_and_every_knob_its_default(catalog):
    for family, parts in MENU.items():
        for spec, shown in zip(parts, catalog["families"][family], strict=True):
            assert shown["summary"].endswith(".")
            assert "\n" not in shown["summary"]
            knobs = shown["json_schema"]["properties"]
            must_be_given = {name: "mine" for name in shown["json_schema"].get("required", ()) if name != "kind"}
            defaults = {name: knob["default"] for name, knob in knobs.items() if name not in must_be_given}
            assert defaults | must_be_given == spec(**must_be_given).model_dump(mode="json")


def test_a_knob_has_its_meaning_and_its_bounds(catalog):
    group = next(part for part in catalog["families"]["norm"] if part["kind"] == "group")
    num_groups = group["json_schema"]["properties"]["num_groups"]
    assert num_groups["description"] == "Groups of channels; must divide the channels of every layer."
    assert (num_groups["default"], num_groups["minimum"], num_groups["type"]) == (32, 1, "integer")


@pytest.mark.parametrize(
    ("changes", "fits"),
    [
        ({}, True),
        ({"norm": {"kind": "group", "num_groups": 4}}, True),
        ({"norm": {"kind": "batch", "num_groups": 4}}, False),
        ({"norm": {"num_groups": 4}}, False),
        ({"norm": {}}, False),
        ({"weight": {}}, False),
        ({"model": {}}, False),
        ({"steps": 0}, False),
        ({"steps": None}, True),
        ({"optimizer": {"kind": "sgd", "lr": 0}}, False),
        ({"foo": 1}, False),
    ],
)
def test_the_schema_of_a_job_takes_what_the_api_takes(client, catalog, changes, fits):
    body = JOB | changes
    assert Draft202012Validator(catalog["job"]).is_valid(body) is fits
    assert (client.post("/v1/jobs/preview", json=body).status_code == 200) is fits


def test_a_whole_job_written_out_fits_the_schema(catalog):
    spec = JobSpec.model_validate(JOB).model_dump(mode="json")
    assert Draft202012Validator(catalog["job"]).is_valid(spec)
