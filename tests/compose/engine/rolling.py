"""The laboratory is brought to another image while it trains on two workers: the API is away for seconds, no job is."""

from __future__ import annotations

import json
import subprocess
import threading
import time
import urllib.request
from dataclasses import dataclass, field, replace
from typing import Any, Self

from engine.project import Project, TrialFailed

JOB = {"model": {"kind": "mlp"}, "data": {"kind": "digits", "size": 8}, "steps": 30000, "checkpoint_every": 1000,
       "record_every": 50, "deterministic": True}  # fmt: skip
SEEDS = (1, 2)
LABEL = "through an upgrade"
IMAGE = "normcore:rolling"
EVERY_S = 0.1


def run(laboratory: Project) -> None:
    """Two jobs undisturbed; the same two, ordered by a client that insists, through the upgrade to a later image."""
    laboratory.up("--scale", "worker=2")
    undisturbed = [laboratory.order(JOB | {"seed": seed}, trial="undisturbed") for seed in SEEDS]
    outcomes = [laboratory.finished(job) for job in undisturbed]
    stores, workers = laboratory.containers("postgres", "redis"), laboratory.containers("worker")
    later = replace(laboratory, environment={**laboratory.environment, "NORMCORE_IMAGE": IMAGE, "REVISION": "later"})
    print(f"  build: {later.build():.0f} s")
    try:
        with Watch(f"{laboratory.api}/livez") as api, Watch(f"{laboratory.mlflow}/health") as mlflow:
            client = threading.Thread(target=insist, args=(laboratory, api))
            client.start()
            start = time.monotonic()
            later.script("upgrade")
            took_s = time.monotonic() - start
            client.join()
        print(f"  upgrade: {took_s:.0f} s; the API {api}; MLflow {mlflow}")
        for service in ("api", "scheduler", "mlflow", "worker"):
            if revisions(later, service) != {"later"}:
                raise TrialFailed(f"{service} must run the later image, got {revisions(later, service)}")
        if later.containers("postgres", "redis") != stores:
            raise TrialFailed("Postgres and Redis must be left as they are, and were not")
        if len(later.containers("worker")) != 2 or set(workers) & set(later.containers("worker")):
            raise TrialFailed(f"two new workers must be there, got {later.containers('worker')} after {workers}")
        jobs = sorted(job["id"] for job in laboratory.jobs("trial", LABEL))
        if len(jobs) != len(SEEDS):
            raise TrialFailed(f"what a client insisted on must be ordered once, got {len(jobs)} jobs for {len(SEEDS)}")
        for job, outcome in zip(jobs, outcomes, strict=True):
            laboratory.finished(job).must_be(outcome)
            attempts = laboratory.job(job)["attempts"]
            if [attempt["outcome"] for attempt in attempts[:-1]] != ["released"] * (len(attempts) - 1):
                raise TrialFailed(f"job {job} must be handed on at no charge, got {attempts}")
            print(f"  the same weights and curves in {len(attempts)} attempts")
        if not any(len(laboratory.job(job)["attempts"]) > 1 for job in jobs):
            raise TrialFailed("the trainings were to be under way when their workers were stopped, and had ended")
    finally:
        laboratory.up("--scale", "worker=1")
        subprocess.run(["docker", "image", "rm", IMAGE], capture_output=True, check=False)


@dataclass
class Watch:
    """Asks an address again and again, from a thread of its own, and knows when nobody answered."""

    url: str
    away: threading.Event = field(default_factory=threading.Event)
    asked: int = 0
    failed: list[float] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def __str__(self) -> str:
        longest = self.failed[-1] - self.failed[0] if self.failed else 0.0
        return f"failed {len(self.failed)} of {self.asked} requests, over {longest:.1f} s"

    def _watch(self) -> None:
        while not self._stop.wait(EVERY_S):
            self.asked += 1
            try:
                with urllib.request.urlopen(self.url, timeout=5):
                    pass
            except OSError:
                self.failed.append(time.monotonic())
                self.away.set()


def insist(laboratory: Project, api: Watch) -> None:
    """Order the jobs from the time on when the API is away, each under a key until it is taken, and then once more."""
    api.away.wait(600)
    for seed in SEEDS:
        body = json.dumps(JOB | {"seed": seed, "labels": {"trial": LABEL}}).encode()
        headers = {"Content-Type": "application/json", "Idempotency-Key": f"rolling {seed} {api.asked}"}
        request, taken = urllib.request.Request(f"{laboratory.api}/v1/jobs", body, headers), 0
        while taken < 2:
            try:
                with urllib.request.urlopen(request, timeout=30):
                    taken += 1
            except OSError:
                time.sleep(EVERY_S)


def revisions(laboratory: Project, service: str) -> set[Any]:
    """What the images of a service's containers say of the revision they were built from."""
    label = '{{index .Config.Labels "org.opencontainers.image.revision"}}'
    command = ["docker", "inspect", "--format", label, *laboratory.containers(service)]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
