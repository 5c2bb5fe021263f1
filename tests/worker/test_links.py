import json
from urllib.parse import parse_qs, unquote, urlsplit

from worker.links import artifact_link, charts_link, compare_link, run_link, runs_link, shared_view

MLFLOW = "http://127.0.0.1:5000"


def parts(link):
    """The page of MLflow's interface that a link opens, and its query, both behind the '#'."""
    base, _, fragment = link.partition("/#")
    assert base == MLFLOW
    split = urlsplit(fragment)
    return unquote(split.path), {key: value for key, (value,) in parse_qs(split.query).items()}


def every_link(mlflow):
    return [
        runs_link(mlflow, "7"),
        charts_link(mlflow, "7"),
        run_link(mlflow, "7", "abc"),
        compare_link(mlflow, "7", ["abc", "def"]),
        artifact_link(mlflow, "7", "abc", "figures/a b.png"),
    ]


def test_every_link_opens_the_classic_view_with_or_without_a_slash_at_the_address():
    assert every_link(MLFLOW) == every_link(MLFLOW + "/")
    assert {parts(link)[1]["workflowType"] for link in every_link(MLFLOW)} == {"machine_learning"}


def test_links_name_their_page():
    assert [parts(link)[0] for link in every_link(MLFLOW)] == [
        "/experiments/7/runs",
        "/experiments/7/runs",
        "/experiments/7/runs/abc",
        "/compare-runs",
        "/experiments/7/runs/abc/artifacts/figures/a b.png",
    ]
    assert parts(charts_link(MLFLOW, "7"))[1]["compareRunsMode"] == "CHART"
    query = parts(compare_link(MLFLOW, "7", ["abc", "def"]))[1]
    assert (json.loads(query["runs"]), json.loads(query["experiments"])) == (["abc", "def"], ["7"])


def test_the_tables_share_the_view_that_the_tag_holds():
    name, value = shared_view()
    for link in (runs_link(MLFLOW, "7"), charts_link(MLFLOW, "7")):
        assert name == f"mlflow.sharedViewState.{parts(link)[1]['viewStateShareKey']}"
    columns = json.loads(value)["selectedColumns"]
    assert columns[0] == "metrics.`test/accuracy`"
    assert "params.`norm.kind`" in columns
    assert len(name) <= 250
    assert len(value) <= 5000


def test_a_search_survives_its_way_through_the_address():
    search = "tags.study_id = \"a&b\" and params.`norm.kind` = 'batch'"
    assert parts(runs_link(MLFLOW, "7", search=search))[1]["searchFilter"] == search
    assert "searchFilter" not in runs_link(MLFLOW, "7")
