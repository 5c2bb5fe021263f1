"""What Prometheus and Grafana are given, without either: it names only what the API tells, and fits together."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from api.exposition import Figures
from api.traffic import Traffic
from worker.census import WAIT_BOUNDS_S, Census, Endings, Queue, RunningJob, Unsent, Waits
from worker.states import State
from worker.views import WorkerRow

ROOT = Path(__file__).parents[2]
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
PROMETHEUS: dict[str, Any] = yaml.safe_load((ROOT / "docker" / "prometheus" / "prometheus.yml").read_text())
ALERTS: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((ROOT / "docker" / "prometheus" / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
GRAFANA = ROOT / "docker" / "grafana"
DASHBOARD: dict[str, Any] = json.loads((GRAFANA / "dashboards" / "normcore.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
EXPRESSIONS = [rule["expr"] for rule in ALERTS] + [t["expr"] for panel in PANELS for t in panel["targets"]]

OF_PROMQL = {"sum", "by", "max", "count", "rate", "increase", "changes", "histogram_quantile", "or", "vector", "le"}
OF_PROMETHEUS = {"up": {"job"}, "ALERTS": {"alertstate"}}


@pytest.fixture(scope="module")
def told() -> dict[str, set[str]]:
    """Every metric that a busy laboratory's /metrics tells, with the labels that it may have."""
    census = Census(
        states=dict.fromkeys(State, 1),
        queues=(Queue("busy", 1, 2.0),),
        running=(RunningJob("a", "w", 1, 2, 3.0, 4.0),),
        attempts=2,
        repeated=1,
        endings=(Endings("failed", "exception", 1),),
        waits=Waits(1, 1.0, dict.fromkeys(WAIT_BOUNDS_S, 1)),
        workers=(WorkerRow("w", "cpu", "cpu", 0.0, True, "a"),),
        schedulers=1,
        unsent=Unsent(1, 1.0),
    )
    traffic = Traffic()
    traffic.count("GET", "/livez", 200, 0.1)
    registry = CollectorRegistry()
    for collector in (Figures(census, {"redis": True, "mlflow": True}), traffic):
        registry.register(collector)
    ProcessCollector(registry=registry)
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            found.setdefault(sample.name, {"job", "instance"}).update(sample.labels)
    return found


def test_the_names_keep_prometheus_rules(told: dict[str, set[str]]) -> None:
    for name in told:
        assert re.fullmatch(r"(normcore|process)_[a-z_]+", name)
        assert not re.search(r"_(ms|minutes|hours|kib|mib|percent)(_|$)", name)


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_names_only_what_the_api_tells(expression: str, told: dict[str, set[str]]) -> None:
    known = told | OF_PROMETHEUS
    for name, selectors in re.findall(r"(\w+)\{([^}]*)\}", expression):
        assert {label for label, _ in re.findall(r"(\w+)(=~|!=|=)", selectors)} <= known[name]
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\"[^\"]*\"", "", expression)
    grouped = {label for labels in re.findall(r"by \(([^)]*)\)", bare) for label in re.split(r",\s*", labels)}
    names = set(re.findall(r"[A-Za-z_]\w*", bare)) - OF_PROMQL - grouped
    assert names
    assert names <= set(known)
    assert grouped <= set().union(*(known[name] for name in names))


def test_legends_and_summaries_name_only_labels_that_are_left() -> None:
    for panel in PANELS:
        for target in panel["targets"]:
            for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                grouped = re.search(r"by \(([^)]*)\)", target["expr"])
                assert grouped is None or label in re.split(r",\s*", grouped[1])
    for rule in ALERTS:
        said = " ".join(rule["annotations"].values())
        if re.search(r"\bsum\(", rule["expr"]):
            assert "$labels" not in said


def test_an_alert_says_what_is_wrong_and_what_to_do() -> None:
    assert len({rule["alert"] for rule in ALERTS}) == len(ALERTS)
    for rule in ALERTS:
        assert set(rule["annotations"]) == {"summary", "remedy"}
        assert rule["labels"]["severity"] in {"critical", "warning"}


def test_prometheus_reads_the_api_s_own_port() -> None:
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in PROMETHEUS["scrape_configs"]}
    assert targets == {"normcore": ["api:8000"], "prometheus": ["127.0.0.1:9090"]}
    assert SERVICES["api"]["ports"][0].endswith(":8000")
    assert all((ROOT / "docker" / "prometheus" / name).exists() for name in PROMETHEUS["rule_files"])


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    assert {DASHBOARD["uid"], DASHBOARD["title"]} == {"normcore", "Normcore"}
    assert 36 <= DASHBOARD["schemaVersion"] <= 42
    assert DASHBOARD.get("id") is None
    (source,) = yaml.safe_load((GRAFANA / "datasources" / "prometheus.yml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    ids = [panel["id"] for panel in PANELS]
    assert len(set(ids)) == len(ids)
    places: set[tuple[int, int]] = set()
    for panel in PANELS:
        assert panel["type"] in {"stat", "timeseries", "table"}
        assert panel["title"]
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"] in {"short", "s", "bytes", "percentunit", "reqps"}
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        covered = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not covered & places
        places |= covered
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        for owner in (panel, *panel["targets"]):
            assert owner["datasource"] == {"type": source["type"], "uid": source["uid"]}


def test_what_grafana_is_given_lies_where_it_looks() -> None:
    (provider,) = yaml.safe_load((GRAFANA / "dashboards" / "provider.yml").read_text())["providers"]
    mounts = dict(volume.split(":")[:2] for volume in SERVICES["grafana"]["volumes"] if volume.startswith("./"))
    assert {source for source in mounts if (ROOT / source).is_dir()} == set(mounts)
    assert provider["options"]["path"] == mounts["./docker/grafana/dashboards"]
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (GRAFANA / "dashboards" / Path(home).name).exists()
    assert Path(home).parent == Path(mounts["./docker/grafana/dashboards"])


def test_grafana_does_not_start_with_a_password_that_everybody_knows() -> None:
    entrypoint = [word.replace("$$", "$") for word in SERVICES["grafana"]["entrypoint"]]
    environment = {"PATH": os.environ["PATH"], "GF_SECURITY_ADMIN_PASSWORD": ""}
    done = subprocess.run(entrypoint, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "run make env, which adds one" in done.stderr
