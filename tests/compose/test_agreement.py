"""Compose, .env.example, the settings, the Makefile and what is written of them say the same."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from worker.settings import Settings

ROOT = Path(__file__).parents[2]
COMPOSE_TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(COMPOSE_TEXT)
EXAMPLE_TEXT = (ROOT / ".env.example").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()

NOT_FROM_ENV = {
    "NORMCORE_STATE_DIR": "the image's folder, which is a volume",
    "NORMCORE_DATABASE_URL": "of the service postgres, with the password of .env",
    "NORMCORE_REDIS_URL": "of the service redis, with the password of .env",
    "NORMCORE_MLFLOW_URL": "of the service mlflow",
    "NORMCORE_API_URL": "the client's, outside of compose",
    "NORMCORE_API_HOST": "BIND_ADDRESS says who reaches it",
    "NORMCORE_WORKER_NAME": "a container's own",
    "NORMCORE_BEAT": "between a container and its healthcheck",
    "NORMCORE_LABORATORY": "of a machine that joins, in .env.worker.example",
    "NORMCORE_MACHINE_KEY": "of a machine that joins, in .env.worker.example",
    "NORMCORE_DEVICE": "the service says: worker or worker-gpu",
}
"""The settings that .env does not set, each with the reason."""
DEFAULTS = {f"NORMCORE_{name.upper()}": str(field.default) for name, field in Settings.model_fields.items()}


def test_every_setting_comes_from_env_or_has_a_reason_not_to() -> None:
    offered = set(re.findall(r"^(?:# )?(NORMCORE_[A-Z_]+)=", EXAMPLE_TEXT, flags=re.MULTILINE))
    assert DEFAULTS.keys() - offered == NOT_FROM_ENV.keys()


def test_what_the_example_shows_of_a_setting_is_its_default_and_is_passed_on() -> None:
    shown = dict(re.findall(r"^# (NORMCORE_[A-Z_]+)=(.*)$", EXAMPLE_TEXT, flags=re.MULTILINE))
    assert shown == {name: DEFAULTS[name] for name in shown}
    for name in ("api", "scheduler", "worker", "worker-gpu"):
        environment = COMPOSE["services"][name]["environment"]
        assert {key for key, value in environment.items() if value is None} == shown.keys()


def test_only_mlflow_has_the_keys_of_the_bucket() -> None:
    of_the_bucket = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION", "MLFLOW_S3_ENDPOINT_URL"}
    assert set(re.findall(r"^# ((?:AWS|MLFLOW_S3)_\w+)=$", EXAMPLE_TEXT, flags=re.MULTILINE)) == of_the_bucket
    for name, service in COMPOSE["services"].items():
        held = {key: value for key, value in service.get("environment", {}).items() if key in of_the_bucket}
        assert held == (dict.fromkeys(of_the_bucket) if name == "mlflow" else {})


def test_every_target_that_is_spoken_of_can_be_made_and_every_target_is_spoken_of() -> None:
    targets = set(re.findall(r"^([a-z]+):.*## ", MAKEFILE, flags=re.MULTILINE))
    phony = re.search(r"^\.PHONY: (.+)$", MAKEFILE, flags=re.MULTILINE)
    assert phony
    assert set(phony[1].split()) == targets
    spoken = "".join((ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md"))
    said = set(
        re.findall(r"(?:^|`|\S+=\S+ |run )make ([a-z]+)", spoken + COMPOSE_TEXT + EXAMPLE_TEXT, flags=re.MULTILINE)
    )
    assert said <= targets
    assert targets - said == {"help", "format", "clean"}  # `make` alone shows these


def test_scripts_that_make_runs_are_there_and_may_be_run() -> None:
    for script in re.findall(r"^\t@?(docker/\S+)", MAKEFILE, flags=re.MULTILINE):
        assert os.access(ROOT / script, os.X_OK), script


needs_compose = pytest.mark.skipif(
    shutil.which("docker") is None
    or subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode != 0,
    reason="needs docker compose, without an engine",
)
PROFILES = sorted({profile for service in COMPOSE["services"].values() for profile in service.get("profiles", ())})


@needs_compose
@pytest.mark.parametrize("profile", ["", *PROFILES])
def test_compose_takes_every_profile(profile: str) -> None:
    config = composed(["--profile", profile] if profile else [])
    expected = {name for name, service in COMPOSE["services"].items() if profile in service.get("profiles", [profile])}
    assert config["services"].keys() == expected


@needs_compose
def test_a_longer_last_checkpoint_is_a_longer_life_of_the_container() -> None:
    worker = composed([], NORMCORE_STOP_GRACE_S="200", NORMCORE_LEASE_TTL_S="45")["services"]["worker"]
    assert worker["stop_grace_period"] == "4m20s"
    assert worker["environment"]["NORMCORE_STOP_GRACE_S"] == "200"
    assert worker["environment"]["NORMCORE_LEASE_TTL_S"] == "45"
    assert worker["environment"]["NORMCORE_THREADS"] is None


def composed(arguments: list[str], **variables: str) -> dict[str, Any]:
    """What compose makes of its file."""
    done = subprocess.run(
        ["docker", "compose", "--env-file", ".env.example", *arguments, "config", "--format", "json"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "POSTGRES_PASSWORD": "p", "REDIS_PASSWORD": "r", **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    config: dict[str, Any] = json.loads(done.stdout)
    return config
