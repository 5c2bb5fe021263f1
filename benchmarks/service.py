"""How long a person waits: the API from start to healthy, and a warm laboratory from POST to the first optimizer step.

Run `.venv/bin/python benchmarks/service.py` with no laboratory running on its ports; it starts one of its own in a
temporary folder. Times are wall clock, seen from outside over HTTP.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from machine import describe, summary

from api.client import Client

ROUNDS = 5
JOB = {
    "model": {"kind": "mlp", "hidden": [128]},
    "data": {"kind": "digits", "size": 8},
    "steps": 50,
    "evaluate_every": 50,
    "checkpoint_every": 50,
    "labels": {"benchmark": "service"},
}


def main() -> None:
    """Measure both and print them with the machine, n, median and spread."""
    print(describe())
    report("api, start to healthy", [api_start() for _ in range(ROUNDS)])
    report("warm worker, POST to first optimizer step", first_steps())


def report(what: str, seconds: list[float]) -> None:
    """One line: n, median, spread."""
    print(f"{what}, seconds: {summary(seconds)}")


def api_start() -> float:
    """Seconds from starting the API's process to its first answer on /livez."""
    with tempfile.TemporaryDirectory() as state:
        port = free_port()
        environment = {**os.environ, "NORMCORE_STATE_DIR": state}
        subprocess.run([sys.executable, "-m", "worker.migrate"], check=True, env=environment, stdout=subprocess.DEVNULL)
        began = time.monotonic()
        server = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "--factory", "api.app:create_app", "--port", str(port)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_for(f"http://127.0.0.1:{port}/livez", timeout_s=60)
            return time.monotonic() - began
        finally:
            server.terminate()
            server.wait()


def first_steps() -> list[float]:
    """Seconds from POST to the first step that the API reports, for jobs one after another on one warm worker."""
    with tempfile.TemporaryDirectory() as state:
        environment = {
            **os.environ,
            "NORMCORE_STATE_DIR": state,
            "NORMCORE_API_PORT": str(free_port()),
            "NORMCORE_MLFLOW_PORT": str(free_port()),
        }
        url = f"http://127.0.0.1:{environment['NORMCORE_API_PORT']}"
        laboratory = subprocess.Popen(
            [str(Path(sys.executable).with_name("normcore")), "up"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_for(f"{url}/readyz", timeout_s=120)
            with Client(url) as client:
                run(client, seed=0)
                time.sleep(10)
                waits = []
                for seed in range(1, ROUNDS + 1):
                    waits.append(run(client, seed))
                    time.sleep(6)  # the next trainer warms up
                return waits
        finally:
            laboratory.send_signal(signal.SIGTERM)
            laboratory.wait(timeout=120)


def run(client: Client, seed: int) -> float:
    """Seconds from POST to the first step seen; returns when the job has ended."""
    began = time.monotonic()
    job = client.submit({**JOB, "seed": seed})
    while client.job(job.id).progress.step < 1:
        time.sleep(0.01)
    waited = time.monotonic() - began
    client.wait(job.id)
    return waited


def wait_for(url: str, timeout_s: float) -> None:
    """Return when `url` answers 200."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
