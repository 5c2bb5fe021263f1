"""Docker's files without an engine: they agree with each other, with the settings, and keep what they promise."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import stat
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from worker.settings import Settings

ROOT = Path(__file__).parents[2]
COMPOSE_TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(COMPOSE_TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
EXAMPLE = dict(re.findall(r"^([A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text(), flags=re.MULTILINE))
NEEDED_SECRETS = {"POSTGRES_PASSWORD", "REDIS_PASSWORD"}
SECRETS = NEEDED_SECRETS | {"GRAFANA_PASSWORD"}
"""All of them; compose would ask for one of a service that nobody wants too, so that those services ask themselves."""
ONE_SHOT = {"migrate", "backup"}
"""Services that do one thing and end."""

# ${NAME:-default}, where the default may be another variable, and ${NAME:?message}; $$ is the container's own.
VARIABLE = re.compile(r"(?<!\$)\$\{([A-Z_]+)(?::([-?])((?:[^${}]|\$\{[^{}]*\})*))?\}")
VARIABLES = VARIABLE.findall(COMPOSE_TEXT)


def test_every_variable_of_compose_is_in_the_example_and_the_other_way_round() -> None:
    assert {name for name, _, _ in VARIABLES} == set(EXAMPLE)


@pytest.mark.parametrize(("name", "kind", "text"), sorted(set(VARIABLES)))
def test_a_default_is_the_example_s_and_a_secret_has_none(name: str, kind: str, text: str) -> None:
    if name in NEEDED_SECRETS:
        assert (kind, text, EXAMPLE[name]) == ("?", "run make env first", "")
    elif name in SECRETS:
        assert (kind, text, EXAMPLE[name]) == ("-", "", "")
    elif VARIABLE.fullmatch(text):
        assert (kind, EXAMPLE[name]) == ("-", "")
    else:
        assert (kind, text) == ("-", EXAMPLE[name])


def test_every_setting_that_compose_names_is_one() -> None:
    known = {f"NORMCORE_{name.upper()}" for name in Settings.model_fields}
    of_compose_alone = {"NORMCORE_IMAGE", "NORMCORE_GPU", "NORMCORE_GPU_IMAGE"}
    assert set(re.findall(r"NORMCORE_[A-Z_]+", COMPOSE_TEXT + DOCKERFILE)) - of_compose_alone <= known


def test_defaults_that_are_also_a_setting_s_are_the_same() -> None:
    fields = Settings.model_fields
    for name in ("api_port", "mlflow_port", "gate_port", "slots", "stop_grace_s", "hub"):
        assert type(fields[name].default)(yaml.safe_load(EXAMPLE[f"NORMCORE_{name.upper()}"])) == fields[name].default


def test_ports_are_this_machine_s_alone_unless_told_and_the_stores_have_none() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert set(published) == {"api", "mlflow", "gate", "prometheus", "grafana"}
    # Who comes to the gate needs a key; Prometheus asks nobody who they are.
    bound = {"gate": "${GATE_ADDRESS:-127.0.0.1}:", "prometheus": "127.0.0.1:"}
    for name, ports in published.items():
        for port in ports:
            assert port.startswith(bound.get(name, "${BIND_ADDRESS:-127.0.0.1}:"))


@pytest.mark.parametrize("name", SERVICES)
def test_every_container_is_guarded_limited_and_rotates_its_log(name: str) -> None:
    service = SERVICES[name]
    assert service["init"] is True
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"]
    assert service["pids_limit"]
    assert set(service["logging"]["options"]) == {"max-size", "max-file"}
    assert service["restart"] == ("no" if name in ONE_SHOT else "unless-stopped")
    assert not service.get("privileged")
    if name == "debug":
        assert service["cap_add"] == ["SYS_PTRACE"]
    elif name != "postgres":
        assert "cap_add" not in service


@pytest.mark.parametrize("name", sorted(SERVICES.keys() - ONE_SHOT))
def test_services_that_stay_have_a_healthcheck_that_stays_in_the_container_s_network(name: str) -> None:
    test = " ".join(SERVICES[name]["healthcheck"]["test"])
    assert all("127.0.0.1" in url for url in re.findall(r"https?://\S+", test))


def test_no_argument_holds_a_password() -> None:
    for service in SERVICES.values():
        said = yaml.safe_dump([service.get(key) for key in ("command", "entrypoint", "healthcheck", "build", "labels")])
        assert not any(secret in said for secret in SECRETS)


def test_a_worker_is_given_time_for_its_last_checkpoint_and_its_last_words() -> None:
    for worker in ("worker", "worker-gpu"):
        assert SERVICES[worker]["stop_grace_period"] == "1m${NORMCORE_STOP_GRACE_S:-30}s"


def test_image_version_label_and_project_agree() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert EXAMPLE["NORMCORE_IMAGE"] == f"normcore:{version}"
    assert EXAMPLE["NORMCORE_GPU_IMAGE"] == f"normcore:{version}-cuda"
    assert f'org.opencontainers.image.version="{version}"' in DOCKERFILE


def test_the_last_stage_is_no_root_s_and_builds_nothing() -> None:
    last = DOCKERFILE[DOCKERFILE.rindex("\nFROM ") :]
    assert re.search(r"^USER 10001:10001$", last, flags=re.MULTILINE)
    assert not re.search(r"\b(apt-get|pip|gcc|g\+\+|curl|wget)\b", last)
    assert not re.search(r"^(ADD|HEALTHCHECK) ", DOCKERFILE, flags=re.MULTILINE)
    assert not re.search(r"^(ARG|ENV) .*(PASSWORD|TOKEN|SECRET|KEY)", DOCKERFILE, flags=re.MULTILINE)
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, flags=re.MULTILINE)) == {"${PYTHON_IMAGE}", "dependencies"}


def test_what_the_image_copies_is_let_through() -> None:
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied: set[str] = set()
    for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, flags=re.MULTILINE):
        copied |= set(sources.split())
    assert copied == let_through
    assert all((ROOT / path).exists() for path in copied)


def test_the_image_installs_what_the_service_asks_for_and_no_more() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found = requirements_of(project)
    extras = project["optional-dependencies"]
    assert set(found) == (
        {*project["dependencies"], *extras["service"], *extras["data"], *extras["figures"]} - {"normcore[data,figures]"}
    )
    project |= {"version": "9", "description": "another"}
    assert requirements_of(project) == found


def new_env(tmp_path: Path) -> Path:
    """Where `make env` writes .env."""
    (tmp_path / "docker").mkdir()
    shutil.copy(ROOT / "docker" / "make-env", tmp_path / "docker")
    shutil.copy(ROOT / ".env.example", tmp_path)
    return tmp_path / ".env"


def test_make_env_makes_every_password_once(tmp_path: Path) -> None:
    env = new_env(tmp_path)
    assert make_env(tmp_path).returncode == 0
    written = env.read_text()
    assert stat.S_IMODE(env.stat().st_mode) == 0o600
    values = dict(re.findall(r"^([A-Z_]+)=(.*)$", written, flags=re.MULTILINE))
    passwords = {values.pop(name) for name in SECRETS}
    assert len(passwords) == len(SECRETS)
    assert all(re.fullmatch("[0-9a-f]{48}", password) for password in passwords)
    assert values == {name: value for name, value in EXAMPLE.items() if name not in SECRETS}

    again = make_env(tmp_path)
    assert again.returncode == 1
    assert ".env is there already" in again.stderr
    assert env.read_text() == written


def test_make_env_adds_what_an_older_one_lacks_and_leaves_the_rest(tmp_path: Path) -> None:
    env = new_env(tmp_path)
    old = "REDIS_PASSWORD=a\nGRAFANA_PASSWORD=\nNORMCORE_SLOTS=3\nPOSTGRES_PASSWORD=b"
    env.write_text(old)
    added = make_env(tmp_path)
    assert (added.returncode, added.stdout) == (0, "make-env: added to .env: GRAFANA_PASSWORD\n")
    assert stat.S_IMODE(env.stat().st_mode) == 0o600
    values = dict(re.findall(r"^([A-Z_]+)=(.*)$", env.read_text(), flags=re.MULTILINE))
    assert re.fullmatch("[0-9a-f]{48}", values.pop("GRAFANA_PASSWORD"))
    assert values == {"REDIS_PASSWORD": "a", "POSTGRES_PASSWORD": "b", "NORMCORE_SLOTS": "3"}
    assert make_env(tmp_path).returncode == 1


def test_the_makefile_has_the_command_that_compose_asks_for() -> None:
    assert re.search(r"^env:.*\n\t@docker/make-env$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert os.access(ROOT / "docker" / "make-env", os.X_OK)
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines()


def make_env(root: Path) -> subprocess.CompletedProcess[str]:
    """Run the script as `make env` does."""
    return subprocess.run([root / "docker" / "make-env"], capture_output=True, text=True, check=False)


def requirements_of(project: dict[str, Any]) -> list[str]:
    """What `docker/requirements.py` writes into the image's build."""
    spec = importlib.util.spec_from_file_location("requirements", ROOT / "docker" / "requirements.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: list[str] = module.requirements(project, "service")
    return found


def test_backups_are_kept_out_of_the_repository_and_read_what_they_copy() -> None:
    assert "/backups/" in (ROOT / ".gitignore").read_text().splitlines()
    assert SERVICES["backup"]["volumes"] == ["state:/var/lib/normcore/state:ro"]
    assert SERVICES["backup"]["network_mode"] == "none"
    assert not any("PASSWORD" in str(value) for value in SERVICES["backup"]["environment"].values())


@pytest.mark.parametrize("script", ["backup", "restore", "upgrade"])
def test_a_target_of_make_is_the_script_of_that_name(script: str) -> None:
    assert re.search(rf"^{script}:.*\n\t@docker/{script}\b", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert os.access(ROOT / "docker" / script, os.X_OK)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "restore: say which backup: make restore FROM=backups/NAME"),
        (["backups/none"], "restore: backups/none must hold manifest.json, and does not; nothing is restored"),
    ],
)
def test_restore_says_what_it_lacks(arguments: list[str], sentence: str) -> None:
    command = [ROOT / "docker" / "restore", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, sentence + "\n")


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "docker").glob("*") if path.is_file()))
def test_a_script_of_docker_s_is_posix_shell_that_stops_at_the_first_failure(script: str) -> None:
    text = (ROOT / "docker" / script).read_text()
    if text.startswith("#!"):
        assert text.startswith("#!/bin/sh\n")
        assert "\nset -eu\n" in text
        assert subprocess.run(["sh", "-n", ROOT / "docker" / script], check=False).returncode == 0
