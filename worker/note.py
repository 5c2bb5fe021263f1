"""How a job reads in MLflow: its parameters, its tags and its note. Pure functions; no MLflow is imported."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from normcore.spec import JobSpec
from worker.states import TERMINAL, State
from worker.views import Attempt, Job

JOB_TAG = "normcore.job_id"
"""The tag that a job's run is found by."""

EXPERIMENT_NOTE = (
    "Trainings ordered from Normcore, a laboratory for normalization: each run is one job, with its curves, probes, "
    "figures and checkpoints."
)

_NOT_IN_A_KEY = re.compile(r"[^\w\-. :/]")
_RESERVED = ("mlflow.", "normcore.", "attempt.")
_OURS = {"attempts", "study_id"}
_SHOWN = (
    "test/accuracy",
    "test/accuracy_recomputed",
    "test/accuracy_noisy",
    "test/accuracy_ema",
    "test/loss",
    "train/accuracy",
    "train/loss",
    "landscape/effective_beta_times_lr",
)


def flat_params(spec: JobSpec) -> dict[str, str]:
    """The spec as flat parameters under its own names; what was not asked for is left out, as are the labels.

    Example:
        >>> from normcore.menu.datasets import DigitsSpec
        >>> from normcore.menu.norms import GroupNormSpec
        >>> from normcore.menu.models import MlpSpec
        >>> params = flat_params(JobSpec(model=MlpSpec(), data=DigitsSpec(), norm=GroupNormSpec(num_groups=4)))
        >>> params["norm.kind"], params["norm.num_groups"], params["model.hidden"], params["steps"]
        ('group', '4', '[128, 128]', '1000')
    """
    fields = spec.model_dump(mode="json", exclude={"labels", "probes"})
    fields |= {"probes": {probe.kind: probe.model_dump(mode="json", exclude={"kind"}) for probe in spec.probes}}
    if spec.epochs is None:
        fields["steps"] = spec.num_steps
    return dict(_flatten("", fields))


def _flatten(prefix: str, fields: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from _flatten(f"{prefix}{name}.", value)
        elif value is not None:
            yield prefix + name, value if isinstance(value, str) else json.dumps(value)


def tags(job: Job) -> dict[str, str]:
    """The tags of a job's run: who made it, and the labels that the job was ordered with.

    A label that MLflow or we would take for our own is left out; what MLflow does not allow in a key becomes `_`.
    """
    labels = {_NOT_IN_A_KEY.sub("_", key): value for key, value in job.labels.items()}
    made = {
        key: value
        for key, value in labels.items()
        if not key.casefold().startswith(_RESERVED) and key.casefold() not in _OURS
    }
    made |= {JOB_TAG: job.id, "mlflow.source.name": f"normcore job {job.id}", "mlflow.source.type": "JOB"}
    return made if job.study_id is None else made | {"study_id": job.study_id}


def attempt_tags(attempts: list[Attempt]) -> dict[str, str]:
    """How each attempt went."""
    made = {"attempts": str(len(attempts))}
    for attempt in attempts:
        name = f"attempt.{attempt.n}"
        made[f"{name}.worker"] = attempt.worker
        if attempt.resumed_from is not None:
            made[f"{name}.resumed_from"] = str(attempt.resumed_from)
        if attempt.outcome is not None:
            made[f"{name}.outcome"] = attempt.outcome
        if attempt.reason is not None:
            made[f"{name}.reason"] = attempt.reason.detail
    return made


def note(job: Job) -> str:
    """One sentence, because a list shows only the first line; then what was asked for and what came out."""
    spec = job.spec
    rows = {
        "model": spec.model.name,
        "norm": _part(spec.norm),
        "weight": _part(spec.weight),
        "noise": _part(spec.noise),
        "data": _part(spec.data),
        "optimizer": _part(spec.optimizer),
        "schedule": _part(spec.schedule),
        "batch size": f"{spec.batch_size:,}",
        "steps": f"{spec.num_steps:,}",
        "seed": str(spec.seed),
        **{key: f"{job.last_metrics[key]:.4g}" for key in _SHOWN if key in job.last_metrics},
    }
    table = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
    return f"{_sentence(job)}\n\n" + "\n".join(table) + "\n"


def _sentence(job: Job) -> str:
    spec = job.spec
    norm = "without a norm" if spec.norm.kind == "none" else f"with {spec.norm.kind} norm"
    weight = "" if spec.weight.kind == "none" else f", weight method {spec.weight.kind},"
    noise = "" if spec.noise.kind == "none" else " and noise after it"
    subject = f"{spec.model.name} {norm}{noise}{weight} on {spec.data.kind}"
    accuracy, recomputed, noisy = (
        job.last_metrics.get(f"test/accuracy{which}") for which in ("", "_recomputed", "_noisy")
    )
    result = "" if accuracy is None else f", test accuracy {accuracy:.3f}"
    if recomputed is not None:
        # Running statistics gathered under noise misjudge the net; a list of runs shows this line alone.
        also = "" if noisy is None else f", {noisy:.3f} with the noise on"
        result += f" ({recomputed:.3f} with statistics recomputed without the noise{also})"
    elif noisy is not None:
        result += f" ({noisy:.3f} with the noise on)"
    if job.state is State.SUCCEEDED:
        return f"{subject}: {spec.num_steps:,} steps{result}."
    if job.state in TERMINAL:
        why = f": {' '.join(job.reason.detail.split())}" if job.reason else ""
        return f"{subject}: {job.state.value} after {job.progress_step:,} of {spec.num_steps:,} steps{result}{why}."
    return f"{subject}: {spec.num_steps:,} steps ordered."


def _part(part: Any) -> str:
    """A part as a person says it: its kind, and the knobs that are not as usual."""
    # Field by field: some parts cannot be made without a knob, such as the path of one's own data.
    usual = {name: field.get_default(call_default_factory=True) for name, field in type(part).model_fields.items()}
    knobs = [f"{name} {value}" for name, value in part.knobs().items() if value != usual[name]]
    return ", ".join([part.kind, *knobs])
