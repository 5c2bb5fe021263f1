"""The demo's experiment, ordered from this machine: the table of the embedded laboratory, whatever is killed."""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from engine.project import ROOT, STORES_AND_SERVICES, Project, TrialFailed, until

LABEL = re.compile(r"\(label demo:(\S+)\)")
JOBS = 6


def run(laboratory: Project) -> None:
    """Embedded, under compose, with each container killed in turn, and with a restart and `down` and `up`."""
    expected = embedded()
    print(expected)
    same("under compose", laboratory, expected, lambda _: None)
    same("each container killed in turn", laboratory, expected, kill_each_in_turn)
    same("restart, then down and up", laboratory, expected, restart_and_come_up_anew)


def embedded() -> str:
    """The table of a laboratory without Docker, which the demo starts and stops."""
    with tempfile.TemporaryDirectory() as state:
        variables = {"NORMCORE_STATE_DIR": state, "NORMCORE_API_PORT": "18500", "NORMCORE_MLFLOW_PORT": "15500"}
        return table(demo(state, variables))


def same(how: str, laboratory: Project, expected: str, disturb: Callable[[Project], None]) -> None:
    """The demo against a laboratory, disturbed meanwhile; its table, and every point of its jobs once.

    Raises:
        TrialFailed: if the table differs, a job is lost, or MLflow has other points than the order book.
    """
    start = time.monotonic()
    with ThreadPoolExecutor(1) as pool, tempfile.TemporaryDirectory() as state:
        asked = pool.submit(demo, state, {"NORMCORE_STATE_DIR": state}, "--api", laboratory.api)
        disturb(laboratory)
        said = asked.result()
    if (found := table(said)) != expected:
        raise TrialFailed(f"{how}: the table must be that of the embedded laboratory, got\n{found}")
    stamp = LABEL.search(said)
    jobs = [] if stamp is None else laboratory.jobs("demo", stamp[1])
    if len(jobs) != JOBS:
        raise TrialFailed(f"{how}: the experiment has {JOBS} jobs, found {len(jobs)}")
    outcomes = [laboratory.finished(job["id"]) for job in jobs]
    attempts = sum(outcome.attempts for outcome in outcomes)
    print(f"  {how}: the same table in {time.monotonic() - start:.0f} s and {attempts} attempts of {JOBS} jobs")


def demo(folder: str, variables: dict[str, str], *arguments: str) -> str:
    """What `normcore demo` prints.

    Raises:
        TrialFailed: if it ends with another status than 0.
    """
    command = ["env", *(f"{name}={value}" for name, value in variables.items()), "COLUMNS=100"]
    command += [str(ROOT / ".venv" / "bin" / "normcore"), "demo", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=1200)
    if done.returncode != 0:
        raise TrialFailed(f"normcore demo: exit status {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout


def table(said: str) -> str:
    """The lines of the table in what the demo printed: from its heading to the last arm."""
    lines = said.splitlines()
    arms = [number for number, line in enumerate(lines) if line.startswith(("none", "batch"))]
    heading = next(number for number, line in enumerate(lines) if line.split(" ")[0] == "arm")
    first = heading
    while first and lines[first - 1].startswith(" "):  # headings of several lines
        first -= 1
    return "\n".join(line.rstrip() for line in lines[first : max(arms) + 1])


def kill_each_in_turn(laboratory: Project) -> None:
    """`docker kill` of a container, and `up`; the next one when a job is under way again."""
    for service in STORES_AND_SERVICES:
        _a_job_under_way(laboratory)
        laboratory.kill(service)
        time.sleep(2)
        print(f"  {service} killed, up again in {laboratory.up():.0f} s")


def restart_and_come_up_anew(laboratory: Project) -> None:
    """`docker compose restart`, and later `down` and `up`."""
    _a_job_under_way(laboratory)
    laboratory.compose("restart")
    _a_job_under_way(laboratory)
    laboratory.down()
    laboratory.up()


def _a_job_under_way(laboratory: Project) -> None:
    """Wait until some job is in the middle of its training; a later trial must not find all of them ended."""

    def some() -> bool:
        running = laboratory.asked("/v1/jobs?state=running")["items"]
        return any(job["progress"] and 5 < job["progress"]["step"] < job["progress"]["steps"] - 20 for job in running)

    until(some, "a job of the experiment is under way")
