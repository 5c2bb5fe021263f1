"""One compose project: a laboratory of its own, with settings, ports and volumes of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
PATIENCE_S = 300.0
ENDED = {"succeeded", "diverged", "failed", "cancelled"}
STORES_AND_SERVICES = ("postgres", "redis", "mlflow", "api", "scheduler", "worker")
"""The services that a laboratory cannot do without."""


class TrialFailed(Exception):
    """What should have come true and did not."""


@dataclass(frozen=True, slots=True)
class Project:
    """A laboratory under compose.

    Args:
        name: Of the compose project: containers, networks and volumes bear it.
        folder: Where its .env lies, which `make-env` writes when it is made.
        api_port: Of this machine.
        mlflow_port: Of this machine.
        files: The compose files, relative to the checkout.
        environment: Variables that go before those of .env.
    """

    name: str
    folder: Path
    api_port: int = 18000
    mlflow_port: int = 15000
    files: tuple[str, ...] = ("docker-compose.yml",)
    environment: Mapping[str, str] = field(default_factory=dict)

    def make_env(self) -> None:
        """A new .env, as `make env` writes it."""
        (self.folder / "docker").mkdir(parents=True)
        shutil.copy(ROOT / "docker" / "make-env", self.folder / "docker")
        shutil.copy(ROOT / ".env.example", self.folder)
        subprocess.run([self.folder / "docker" / "make-env"], capture_output=True, check=True)

    @property
    def api(self) -> str:
        """The address of its API."""
        return f"http://127.0.0.1:{self.api_port}"

    @property
    def mlflow(self) -> str:
        """The address of its MLflow."""
        return f"http://127.0.0.1:{self.mlflow_port}"

    def compose(self, *arguments: str, stdin: bytes | None = None, timeout_s: float = 1200) -> str:
        """Run `docker compose` with these arguments; what it printed.

        Raises:
            TrialFailed: if it ends with another status than 0, with the end of what it said.
        """
        command = ["docker", "compose", "--project-name", self.name, "--env-file", str(self.folder / ".env")]
        for file in self.files:
            command += ["--file", str(ROOT / file)]
        done = subprocess.run(
            [*command, *arguments],
            input=stdin,
            capture_output=True,
            check=False,
            timeout=timeout_s,
            env=self._variables(),
        )
        if done.returncode != 0:
            said = (done.stderr or done.stdout).decode(errors="replace")
            raise TrialFailed(f"docker compose {' '.join(arguments)}: exit status {done.returncode}\n{said[-4000:]}")
        return done.stdout.decode(errors="replace")

    def script(self, name: str, *arguments: str, **environment: str) -> str:
        """Run a script of docker/ on this project; what it printed.

        Raises:
            TrialFailed: if it ends with another status than 0, with the end of what it said.
        """
        ours = {"COMPOSE_PROJECT_NAME": self.name, "COMPOSE_ENV_FILES": str(self.folder / ".env")}
        ours["COMPOSE_FILE"] = os.pathsep.join(str(ROOT / file) for file in self.files)
        command = [str(ROOT / "docker" / name), *arguments]
        variables = self._variables() | ours | environment
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1200, env=variables)
        if done.returncode != 0:
            raise TrialFailed(f"docker/{name}: exit status {done.returncode}\n{done.stderr[-4000:]}")
        return done.stdout

    def up(self, *arguments: str) -> float:
        """Start what is not running, and wait until all is healthy; seconds it took."""
        start = time.monotonic()
        self.compose("up", "--wait", *arguments)
        return time.monotonic() - start

    def build(self) -> float:
        """Build the image; seconds it took."""
        start = time.monotonic()
        self.compose("build")
        return time.monotonic() - start

    def down(self, *arguments: str) -> float:
        """Remove the containers, with `--volumes` all that they kept; seconds it took."""
        start = time.monotonic()
        self.compose("--profile", "*", "down", "--remove-orphans", *arguments)
        return time.monotonic() - start

    def containers(self, *services: str) -> list[str]:
        """The ids of the running containers, of all services or of those named."""
        return self.compose("ps", "--quiet", *services).split()

    def kill(self, *services: str) -> None:
        """Kill the containers of services at once, or all there are; nothing is started again."""
        subprocess.run(["docker", "kill", *self.containers(*services)], capture_output=True, check=True)

    def order(self, spec: Mapping[str, Any], **labels: str) -> str:
        """The id of a new job."""
        return str(self.asked("/v1/jobs", {**spec, "labels": labels})["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        """A job as the API shows it."""
        return self.asked(f"/v1/jobs/{job_id}")

    def jobs(self, label: str, value: str) -> list[dict[str, Any]]:
        """The jobs with a label."""
        query = urllib.parse.urlencode({"limit": 100, "label": f"{label}:{value}"})
        return list(self.asked(f"/v1/jobs?{query}")["items"])

    def under_way(self, job_id: str, step: int) -> None:
        """Wait until a job trains and is past a step."""

        def past() -> bool:
            job = self.job(job_id)
            if job["state"] in ENDED:
                raise TrialFailed(f"job {job_id} was to be caught at step {step}, and is {job['state']} already")
            return bool(job["state"] == "running" and job["progress"] and job["progress"]["step"] > step)

        until(past, f"job {job_id} is past step {step}")

    def finished(self, job_id: str) -> Outcome:
        """What is left of a job once it has succeeded, and MLflow has all of it."""
        until(lambda: self.job(job_id)["state"] in ENDED, f"job {job_id} ends")
        job = self.job(job_id)
        if job["state"] != "succeeded":
            raise TrialFailed(f"job {job_id} must succeed, and is {job['state']}: {job['reason']}")
        until(lambda: self._run(job_id)["info"]["status"] == "FINISHED", f"MLflow knows that job {job_id} succeeded")
        last = self.asked(f"/v1/jobs/{job_id}/checkpoints")["items"][-1]
        return Outcome(self.points(job_id), last["sha256"], len(job["attempts"]))

    def points(self, job_id: str) -> dict[str, list[tuple[int, float]]]:
        """The curves of a job that MLflow has all of: the same as in the order book, every step once.

        Raises:
            TrialFailed: if MLflow has a point twice, or another one than the order book.
        """
        curves: dict[str, list[tuple[int, float]]] = {}
        cursor = ""
        while cursor is not None:
            page = self.asked(f"/v1/jobs/{job_id}/metrics?limit=10000" + (f"&cursor={cursor}" if cursor else ""))
            for point in page["items"]:
                curves.setdefault(point["key"], []).append((point["step"], point["value"]))
            cursor = page["next"]
        run_id = self._run(job_id)["info"]["run_id"]
        for key, points in curves.items():
            history = self.history(run_id, key)
            twice = len(history) - len({step for step, _ in history})
            if twice or (history != points and not of_the_clock(key)):
                odd = sorted(set(history) ^ set(points))[:5]
                raise TrialFailed(
                    f"{key} of job {job_id} must be the same in MLflow as in the order book, got {len(history)} and "
                    f"{len(points)} points, {twice} of MLflow's at a step that it has already, such as {odd}"
                )
        return curves

    def history(self, run_id: str, key: str) -> list[tuple[int, float]]:
        """The points of a curve that MLflow has, by step; those that it has twice, twice."""
        query = f"run_id={run_id}&metric_key={urllib.parse.quote(key)}&max_results=25000"
        found = fetched(f"{self.mlflow}/api/2.0/mlflow/metrics/get-history?{query}")
        return sorted((int(point["step"]), float(point["value"])) for point in found.get("metrics", ()))

    def asked(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What the API answers."""
        return fetched(self.api + path, body)

    def _run(self, job_id: str) -> dict[str, Any]:
        """The run of a job, as MLflow has it."""
        link = re.search(r"/experiments/([^/]+)/runs/([^/?]+)", self.job(job_id)["links"]["mlflow"] or "")
        if link is None:
            raise OSError(f"job {job_id} has no run yet")
        found: dict[str, Any] = fetched(f"{self.mlflow}/api/2.0/mlflow/runs/get?run_id={link[2]}")["run"]
        return found

    def _variables(self) -> dict[str, str]:
        ports = {"NORMCORE_API_PORT": str(self.api_port), "NORMCORE_MLFLOW_PORT": str(self.mlflow_port)}
        links = {"NORMCORE_MLFLOW_PUBLIC_URL": self.mlflow, "NORMCORE_DATA_DIR": str(self.folder / "data")}
        return {**os.environ, **ports, **links, **self.environment}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is left of a job that succeeded."""

    curves: dict[str, list[tuple[int, float]]]
    weights: str
    """The sha256 of its last weights."""
    attempts: int

    def must_be(self, expected: Outcome) -> None:
        """The same curves and weights as another job's, in however many attempts.

        Raises:
            TrialFailed: with the first curve that differs.
        """
        for key in sorted({*self.curves, *expected.curves}):
            if not of_the_clock(key) and self.curves.get(key) != expected.curves.get(key):
                raise TrialFailed(f"{key} must be as in the undisturbed training, and differs")
        if self.weights != expected.weights:
            raise TrialFailed("the last weights must be those of the undisturbed training, and differ")


def fetched(url: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The JSON behind an address; of a POST, where there is a body.

    Raises:
        OSError: if nobody answers, or with a 5xx: it may be tried again.
        TrialFailed: with the body of a 4xx, which is the trial's own mistake.
    """
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            found: dict[str, Any] = json.load(answer)
            return found
    except urllib.error.HTTPError as error:
        if error.code < 500:
            raise TrialFailed(f"{url}: {error.code} {error.read().decode(errors='replace')[:1000]}") from None
        raise


def until(true: Callable[[], object], what: str, patience_s: float = PATIENCE_S) -> None:
    """Wait until something holds; services may be away meanwhile.

    Raises:
        TrialFailed: if it does not in `patience_s` seconds.
    """
    end = time.monotonic() + patience_s
    last: Exception | None = None
    while time.monotonic() < end:
        try:
            if true():
                return
        except (OSError, KeyError) as error:
            last = error
        time.sleep(0.2)
    raise TrialFailed(f"in {patience_s:g} s it did not come true that {what}" + (f" (last: {last})" if last else ""))


def of_the_clock(key: str) -> bool:
    """Whether a curve measures the machine: its values, and when there are some, differ from attempt to attempt."""
    return key.startswith(("time/", "memory/")) or key == "probe/overhead_fraction"
