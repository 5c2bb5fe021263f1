"""`normcore demo`: the first experiment, from the order to the table, the figure and the links; over HTTP only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from pathlib import Path
from time import monotonic, sleep
from typing import TypeVar

from rich.console import Console

from api.client import ApiUnreachable, Client, RequestRefused
from api.comparison_view import comparison_table, mlflow_lines
from api.embedded.signals import Stop
from api.up import REFUSALS, laboratory
from api.views import JobView
from api.watch import Bars, Glimpse, describe
from normcore.records import Point
from normcore.spec import JobSpec
from worker.report.comparison import Outcome, compare
from worker.report.smoothness import draw
from worker.settings import Settings
from worker.states import TERMINAL, State

LOOK_EVERY_S = 0.5
PATIENCE_S = 120.0
"""How long a worker may take to appear, and the API to answer again."""
MLFLOW_PATIENCE_S = 30.0
"""How long MLflow may take to know the last run before the links are shown without it."""
INTERRUPTED = 130

SEEDS = (0, 1)
ARMS: Mapping[str, Mapping[str, object]] = {
    "none": {"norm": {"kind": "none"}},
    "batch": {"norm": {"kind": "batch"}},
    "batch + noise": {"norm": {"kind": "batch"}, "noise": {"kind": "santurkar"}},
}
COMMON: Mapping[str, object] = {
    "model": {"kind": "vgg", "depth": 11, "width": 0.25},
    "data": {"kind": "digits"},
    "optimizer": {"kind": "sgd", "lr": 0.1},
    "batch_size": 64,
    "steps": 160,
    "evaluate_every": 40,
    "checkpoint_every": 40,
    "deterministic": True,
    "probes": [{"kind": "landscape", "every": 20, "low": 0.5, "high": 4.0, "points": 8}],
}
TITLE = """\
Smoothness along the gradient
{spec.model.name} on {spec.data.kind}, batch {spec.batch_size}, lr {spec.optimizer.lr:g}"""
ANNOUNCEMENT = """\
Training {spec.model.name} on {spec.data.kind} for {spec.num_steps} steps of {spec.batch_size} images at lr {lr:g}, \
in {arms} arms with {seeds} seeds each (label demo:{stamp})"""
NOTES = """\
Mean±standard deviation over {seeds} paired seeds; medians are over the steps at which the probe looked.
Loss band: from the smallest to the largest loss along the gradient, 0.5 to 4 times the lr away (median).
Effective beta x lr: how fast the gradient changes there (median); plain gradient descent is stable up to 2.
Running statistics that were gathered under noise mislead a test without noise, so they are recomputed without;
or the noise stays on."""

T = TypeVar("T")
Idle = Callable[[float], None]
"""How to wait: sleeping, or looking after a laboratory of one's own."""


def demo(settings: Settings, api: str, console: Console, *, start: bool) -> int:
    """Run the experiment in the laboratory that answers at `api`; if none does and `start` is set, in one of its own.

    One of its own stays up on a terminal until Ctrl-C, so that the links work; elsewhere it is stopped.

    Returns:
        The exit status: 0 when every job succeeded or diverged, which is a result; 1 otherwise, 130 when interrupted.
    """
    status, folder = INTERRUPTED, settings.state_dir / "demo"
    try:
        with Client(api) as client:
            if not start or _answers(client):
                return run(client, folder, console, sleep)
            with laboratory(settings, console) as supervisor:
                status = run(client, folder, console, supervisor.attend)
                if console.is_terminal:
                    console.print("The laboratory stays up, and the links work, until Ctrl-C.")
                    supervisor.attend()
    except (Stop, KeyboardInterrupt):
        console.print("Stopped.")
    except (*REFUSALS, RequestRefused) as error:
        console.print(str(error), style="red", markup=False, soft_wrap=True)
        return 1
    return status


def run(client: Client, folder: Path, console: Console, idle: Idle) -> int:
    """Order the arms, follow them to their end, and show what came out; the exit status as of `demo`."""
    _wait_for_worker(client, console, idle)
    stamp = _stamp()
    ordered = {_order(client, arm, seed, stamp, idle): (arm, seed) for seed in SEEDS for arm in ARMS}
    spec = _spec("batch", 0, stamp)
    counts = {"arms": len(ARMS), "seeds": len(SEEDS)}
    console.print(ANNOUNCEMENT.format(spec=spec, lr=spec.optimizer.lr, stamp=stamp, **counts), soft_wrap=True)
    names = {job_id: f"{arm}, seed {seed}" for job_id, (arm, seed) in ordered.items()}
    jobs = _follow(client, stamp, names, console, idle)
    outcomes = [Outcome(*ordered[job.id], _patiently(partial(_curves, client, job.id), idle)) for job in jobs]
    outcomes.sort(key=lambda outcome: (list(ARMS).index(outcome.arm), outcome.seed))
    folder.mkdir(parents=True, exist_ok=True)
    figure = folder / "smoothness.png"
    figure.write_bytes(draw(outcomes, TITLE.format(spec=spec)))
    console.print(comparison_table(compare(outcomes)))
    console.print(NOTES.format(**counts), style="dim")
    console.print(f"Figure: {figure.absolute()}", soft_wrap=True)
    console.print("\n".join(mlflow_lines(jobs, names, "demo", stamp)), soft_wrap=True)
    return _verdict(jobs, console)


def _stamp() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _answers(client: Client) -> bool:
    try:
        client.ready()
    except ApiUnreachable:
        return False
    return True


def _spec(arm: str, seed: int, stamp: str) -> JobSpec:
    return JobSpec.model_validate({**COMMON, **ARMS[arm], "seed": seed, "labels": {"demo": stamp, "arm": arm}})


def _order(client: Client, arm: str, seed: int, stamp: str, idle: Idle) -> str:
    """The id of the job of an arm and a seed: one, however often it was asked for."""
    key = f"demo {stamp} {arm} {seed}"
    return _patiently(lambda: client.submit(_spec(arm, seed, stamp), idempotency_key=key), idle).id


def _patiently(ask: Callable[[], T], idle: Idle) -> T:
    """What the API answers, once it does: it or its database may be away for a while, as when either is restarted."""
    deadline = monotonic() + PATIENCE_S
    while True:
        try:
            return ask()
        except (ApiUnreachable, RequestRefused) as error:
            refused = isinstance(error, RequestRefused) and error.problem.status < HTTPStatus.INTERNAL_SERVER_ERROR
            if refused or monotonic() > deadline:
                raise
        idle(LOOK_EVERY_S)


def _wait_for_worker(client: Client, console: Console, idle: Idle) -> None:
    deadline = monotonic() + PATIENCE_S
    said = ""
    while (missing := client.ready().checks.get("workers", "ok")) != "ok":
        if missing != said:
            console.print(f"Waiting for a worker: {missing}")
            said = missing
        if monotonic() > deadline:
            raise ApiUnreachable(f"no worker came within {PATIENCE_S:.0f} s; the laboratory's worker.log says why")
        idle(LOOK_EVERY_S)


def _follow(client: Client, stamp: str, names: Mapping[str, str], console: Console, idle: Idle) -> list[JobView]:
    """The experiment's jobs in the order of their arms, when all have ended and MLflow knows them, if it ever does."""
    ended_at: float | None = None
    with Bars(console) as bars:
        while True:
            jobs = _patiently(lambda: list(client.jobs(labels={"demo": stamp}))[::-1], idle)
            for job in jobs:
                bars.show(job.id, replace(Glimpse.of(job), name=names[job.id]))
            if all(job.state in TERMINAL for job in jobs):
                ended_at = ended_at or monotonic()
                if all(job.links.mlflow for job in jobs) or monotonic() - ended_at > MLFLOW_PATIENCE_S:
                    return jobs
            idle(LOOK_EVERY_S)


def _curves(client: Client, job_id: str) -> dict[str, list[Point]]:
    curves: dict[str, list[Point]] = {}
    for metric in client.metrics(job_id):
        if metric.value is not None:
            curves.setdefault(metric.key, []).append(Point(metric.key, metric.step, metric.value))
    return curves


def _verdict(jobs: Sequence[JobView], console: Console) -> int:
    for job in jobs:
        if job.state is State.DIVERGED:
            console.print(f"{job.name} diverged, which is a result: {job.reason.detail if job.reason else ''}")
    broken = [job for job in jobs if job.state in {State.FAILED, State.CANCELLED}]
    for job in broken:
        console.print(describe(job), style="red", markup=False, soft_wrap=True)
    return 1 if broken else 0
