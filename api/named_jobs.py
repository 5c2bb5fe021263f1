"""The other jobs that an order's probes name: whether their last weights can be had, and are of the same model."""

from __future__ import annotations

import json
from collections.abc import Iterator

from api.views import Mistake
from normcore.spec import JobSpec
from worker.book import Book, State
from worker.last_weights import last_checkpoint


def mistakes_of_named_jobs(spec: JobSpec, book: Book) -> list[Mistake]:
    """Why the last weights of each job that is named are none to compare with; nothing where they are.

    Raises:
        BookUnavailable: The book cannot be reached, and a job is named.
    """
    found = ((place, _mistake(spec, job_id, book)) for place, job_id in spec.named_jobs.items())
    return [
        Mistake(code=said[0], detail=said[1], pointer=f"/probes/{place}/job")
        for place, said in found
        if said is not None
    ]


def _mistake(spec: JobSpec, job_id: str, book: Book) -> tuple[str, str] | None:
    """The code and the sentence."""
    job = book.job(job_id)
    if job is None:
        detail = f"job must be the id of a job of this laboratory, got {job_id}; GET /v1/jobs lists them"
        return "no-such-job", detail
    if job.state is not State.SUCCEEDED:
        detail = (
            f"job must be one that has succeeded, got {job_id}, which is {job.state.value}; name one that has, or "
            f"order this one once it has"
        )
        return "job-not-succeeded", detail
    if last_checkpoint(job, book.checkpoints(job_id)) is None:
        detail = (
            f"job must be one whose last checkpoint is kept, got {job_id}, whose stands neither on a worker's disk nor "
            f"in MLflow; train it again, or name another"
        )
        return "last-checkpoint-gone", detail
    for (name, ours), (_, theirs) in zip(_of_the_model(spec), _of_the_model(job.spec), strict=True):
        if ours != theirs:
            detail = (
                f"job must be one of the same model, got {name} {theirs} in {job_id} and {ours} here; name one with "
                f"the same model, norm, weight method and shape of data"
            )
            return "job-of-another-model", detail
    return None


def _of_the_model(spec: JobSpec) -> Iterator[tuple[str, str]]:
    """What decides the names and the shapes of the weights and what a model computes with them, each with its value."""
    for family in ("model", "norm", "weight"):
        # Parts of different kinds differ in the first, their kind.
        part = getattr(spec, family).model_dump(mode="json")
        yield from ((f"{family}.{knob}", value) for knob, value in _shown(part))
    tokens = getattr(spec.data, "vocabulary", None) if spec.data.form == "tokens" else None
    data = {"shape": spec.data.shape, "num_outputs": spec.data.num_outputs, "vocabulary": tokens}
    yield from ((f"data.{name}", value) for name, value in _shown(data))


def _shown(values: dict[str, object]) -> Iterator[tuple[str, str]]:
    return ((name, json.dumps(value)) for name, value in values.items())
