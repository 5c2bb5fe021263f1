"""The worker of another machine is guarded as the laboratory's own, and its example says all that its file asks for."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from worker.settings import Settings

ROOT = Path(__file__).parents[2]
HERE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
TEXT = (ROOT / "docker-compose.worker.yml").read_text()
THERE: dict[str, Any] = yaml.safe_load(TEXT)["services"]
EXAMPLE_TEXT = (ROOT / ".env.worker.example").read_text()
EXAMPLE = dict(re.findall(r"^([A-Z_]+)=(.*)$", EXAMPLE_TEXT, flags=re.MULTILINE))
ASKED = {"NORMCORE_LABORATORY", "NORMCORE_MACHINE_KEY"}
OWN = {"command", "environment", "healthcheck", "depends_on", "build", "pull_policy", "profiles"}
"""Where a worker of another machine differs from one of the laboratory."""


@pytest.mark.parametrize("name", ["worker", "worker-gpu"])
def test_the_worker_is_guarded_limited_and_ended_as_the_laboratory_s_own(name: str) -> None:
    here, there = HERE[name], THERE[name]
    assert {key: there.get(key) for key in here if key not in OWN} == {
        key: value for key, value in here.items() if key not in OWN
    }
    assert here.get("profiles") == there.get("profiles")
    assert "ports" not in there
    ours, theirs = here["healthcheck"], there["healthcheck"]
    assert {**ours, "test": None} == {**theirs, "test": None}


def test_nothing_of_the_laboratory_but_its_address_and_the_key_is_asked_for() -> None:
    assert set(THERE) == {"worker", "worker-gpu"}
    here, there = HERE["worker"]["environment"], THERE["worker"]["environment"]
    assert there.keys() - here.keys() == ASKED
    assert {key: there[key] for key in there.keys() & here.keys()} == {
        key: here[key] for key in there.keys() & here.keys()
    }
    assert not any("POSTGRES" in key or "REDIS" in key or "URL" in key for key in there)


def test_every_variable_is_in_the_example_with_its_default_and_the_other_way_round() -> None:
    variables = re.findall(r"(?<!\$)\$\{([A-Z_]+):([-?])([^${}]*)", TEXT)
    assert {name for name, _, _ in variables} == set(EXAMPLE)
    for name, kind, text in variables:
        assert kind == ("?" if name in ASKED else "-")
        assert EXAMPLE[name] == ("" if name in ASKED or name == "CPU_WORKERS" else text)


def test_the_settings_that_are_passed_on_are_shown_with_their_defaults() -> None:
    shown = dict(re.findall(r"^# (NORMCORE_[A-Z_]+)=(.*)$", EXAMPLE_TEXT, flags=re.MULTILINE))
    assert shown.keys() == {key for key, value in THERE["worker"]["environment"].items() if value is None}
    for name, text in shown.items():
        assert text == str(Settings.model_fields[name.removeprefix("NORMCORE_").lower()].default)


def test_the_gate_keeps_its_keys_to_itself_and_listens_where_it_is_published() -> None:
    gate = HERE["gate"]
    (volume,) = gate["volumes"]
    name = volume.partition(":")[0]
    assert [
        service for service, said in HERE.items() if any(v.startswith(f"{name}:") for v in said.get("volumes", ()))
    ] == ["gate"]
    assert gate["ports"][0].endswith(f":{Settings.model_fields['gate_port'].default}")
    assert gate["profiles"] == ["machines"]


def test_the_script_that_gives_keys_speaks_to_the_gate_s_service() -> None:
    script = ROOT / "docker" / "machines"
    assert os.access(script, os.X_OK)
    assert "run --rm --no-deps -T gate python -m worker.machines" in script.read_text()
