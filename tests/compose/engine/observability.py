"""Prometheus reads the laboratory: each alert fires when it should, every graph of the dashboard finds its figures."""

from __future__ import annotations

import json
import os
import re
import subprocess
import urllib.parse
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import yaml

from engine.project import ROOT, Project, TrialFailed, fetched, until

PORT = 19090
PROMETHEUS = f"http://127.0.0.1:{PORT}"
JOB = {"model": {"kind": "mlp"}, "data": {"kind": "digits", "size": 8}, "steps": 100000, "checkpoint_every": 1000,
       "seed": 1}  # fmt: skip
PYTHONS = "for p in /proc/[0-9]*; do grep -qs 'worker[.]scheduler' $p/cmdline && kill -{} ${{p#/proc/}}; done; true"


def run(laboratory: Project) -> None:
    """With a job that runs, one that no worker can run, an attempt that is lost, a database that is away for a moment,
    and a scheduler that hangs."""
    image = os.environ.get("PROMETHEUS_IMAGE") or _example("PROMETHEUS_IMAGE")
    if not _there(image):
        print(f"  {image} is not on this machine and cannot be pulled, so that nothing was tried of it")
        return
    watched = replace(laboratory, environment={**laboratory.environment, "PROMETHEUS_PORT": str(PORT)})
    watched.compose("--profile", "observability", "up", "--wait", "--no-deps", "prometheus")
    try:
        _try(watched)
    finally:
        watched.compose("--profile", "observability", "rm", "--stop", "--force", "--volumes", "prometheus")


def _try(laboratory: Project) -> None:
    laboratory.compose("exec", "-T", "prometheus", "promtool", "check", "config", "/etc/prometheus/prometheus.yml")
    tests = (ROOT / "tests" / "compose" / "engine" / "alerts_test.yml").read_bytes()
    promtool = "cat >/tmp/alerts_test.yml && promtool test rules /tmp/alerts_test.yml"
    laboratory.compose("exec", "-T", "prometheus", "sh", "-c", promtool, stdin=tests)
    print("  promtool: the configuration and the rules are right, each alert fires when it should and not before")

    until(lambda: _asked('up{job="normcore"}') == [1.0], "Prometheus reads the API")
    running = laboratory.order(JOB, trial="observability")
    waiting = laboratory.order({**JOB, "device": "cuda"}, trial="observability")
    laboratory.under_way(running, 100)
    until(lambda: _asked("normcore_service_up"), "Prometheus has read the laboratory")
    laboratory.kill("worker")
    laboratory.kill("postgres")
    until(lambda: _refused(laboratory), "the API says that its database is away")
    laboratory.up()
    laboratory.under_way(running, 100)
    for title, expression in _expressions():
        until(lambda expression=expression: _asked(expression), f"{title} finds figures: {expression}")  # type: ignore[misc]
    print(f"  {len(list(_expressions()))} expressions of the dashboard and the alerts find figures")

    laboratory.compose("exec", "-T", "scheduler", "sh", "-c", PYTHONS.format("STOP"))
    until(lambda: _health(laboratory, "scheduler") == "unhealthy", "a scheduler that hangs is unhealthy")
    until(lambda: _asked('ALERTS{alertname="SchedulerGone",alertstate="firing"}'), "the alert of it fires")
    laboratory.compose("exec", "-T", "scheduler", "sh", "-c", PYTHONS.format("CONT"))
    until(lambda: _health(laboratory, "scheduler") == "healthy", "the scheduler is healthy again")
    until(lambda: not _asked('ALERTS{alertname="SchedulerGone"}'), "the alert of it is over")
    print("  a scheduler that hangs is unhealthy, and its alert fires until it goes on")
    for job in (running, waiting):
        laboratory.asked(f"/v1/jobs/{job}/cancel", {})


def _expressions() -> Iterator[tuple[str, str]]:
    """Every expression with the title of its panel or the name of its alert, which is asked for what it compares."""
    dashboard = json.loads((ROOT / "docker" / "grafana" / "dashboards" / "normcore.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            if not target["expr"].startswith("ALERTS{"):
                yield panel["title"], target["expr"].replace("$__rate_interval", "1m")
    for group in yaml.safe_load((ROOT / "docker" / "prometheus" / "alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], re.sub(r" (==|>) [\d.]+$", "", rule["expr"])


def _asked(expression: str) -> list[float]:
    """The values that Prometheus has now."""
    query = urllib.parse.urlencode({"query": expression})
    found: list[dict[str, Any]] = fetched(f"{PROMETHEUS}/api/v1/query?{query}")["data"]["result"]
    return [float(series["value"][1]) for series in found]


def _refused(laboratory: Project) -> bool:
    try:
        laboratory.asked("/v1/jobs?limit=1")
    except OSError:
        return True
    return False


def _health(laboratory: Project, service: str) -> str:
    (container,) = laboratory.containers(service)
    inspect = ["docker", "inspect", "--format", "{{.State.Health.Status}}", container]
    return subprocess.run(inspect, capture_output=True, text=True, check=True).stdout.strip()


def _there(image: str) -> bool:
    return any(
        subprocess.run(["docker", *command, image], capture_output=True, check=False).returncode == 0
        for command in (["image", "inspect"], ["pull"])
    )


def _example(name: str) -> str:
    found = re.search(rf"^{name}=(.+)$", (ROOT / ".env.example").read_text(), flags=re.MULTILINE)
    if found is None:
        raise TrialFailed(f".env.example must name {name}, and does not")
    return found[1]
