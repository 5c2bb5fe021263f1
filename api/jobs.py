"""/v1/jobs: order a job, list the jobs, see how one stands, cancel it, and its checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Header, Query, Response

from api.answers import checkpoint_views, job_view
from api.examples import refusal_examples
from api.known_job import KnownJob
from api.laboratory import Lab, Laboratory
from api.order import ORDER_PROBLEMS, BuildableOrder
from api.parameters import ListParameters, SubmitParameters
from api.problems import Refused, documented, refuse
from api.strict_json import StrictRoute
from api.views import CheckpointList, JobList, JobView, Mistake
from worker.book import AlreadyEnded, BadCursor, Desired, IdempotencyConflict, Job, Reason
from worker.links import run_link

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=StrictRoute)

IdempotencyKey = Annotated[
    str | None,
    Header(
        pattern=r"^[\x20-\x7e]{1,255}$",
        description="A word of your own for this order. Sent again with the same body, it answers with the job that it "
        "ordered the first time, so that a request may be repeated without ordering twice.",
    ),
]


@router.post(
    "",
    status_code=201,
    operation_id="submit_job",
    summary="Order a job",
    response_description="The job, queued; Location is its address",
    responses={
        200: {"model": JobView, "description": "The job that this Idempotency-Key ordered before"},
        **documented(*ORDER_PROBLEMS, "idempotency-conflict", "unavailable", examples=refusal_examples("/v1/jobs")),
    },
)
def submit_job(
    order: BuildableOrder,
    laboratory: Lab,
    response: Response,
    query: Annotated[SubmitParameters, Query()],
    idempotency_key: IdempotencyKey = None,
) -> JobView:
    """Order a training. Only `model` and `data` must be given.

    The order is previewed first; nothing is stored of one that is refused. A job that was taken is stored before the
    answer comes, and is trained as soon as a worker is free that has what it asks for; `waits` says so where there is
    none such. A job that a probe names must have succeeded before, with the same model.
    """
    try:
        submission = laboratory.book.submit(order.spec, idempotency_key=idempotency_key, priority=query.priority)
    except IdempotencyConflict as error:
        raise Refused("idempotency-conflict", str(error)) from error
    view = _view(laboratory, submission.job)
    response.headers["Location"] = view.links.self
    response.status_code = 201 if submission.created else 200
    return view


@router.get(
    "",
    operation_id="list_jobs",
    summary="List jobs",
    responses=documented("invalid-parameter", "unavailable"),
)
def list_jobs(laboratory: Lab, query: Annotated[ListParameters, Query()]) -> JobList:
    """Jobs, the newest first, a page at a time. Pages do not shift when jobs are ordered meanwhile."""
    labels: dict[str, str] = {}
    for label in query.label:
        key, _, value = label.partition(":")
        if labels.setdefault(key, value) != value:
            raise _refuse_parameter("label", f"label {key} must be asked for once, got {labels[key]!r} and {value!r}")
    try:
        page = laboratory.book.jobs(states=query.state, labels=labels, limit=query.limit, cursor=query.cursor)
    except BadCursor as error:
        raise _refuse_parameter("cursor", str(error)) from error
    obstacles = laboratory.book.obstacles(page.items)
    return JobList(items=[_view(laboratory, job, obstacles) for job in page.items], next=page.next)


@router.get(
    "/{job_id:uuid}",
    operation_id="get_job",
    summary="How a job stands",
    responses=documented("unknown-job", "invalid-parameter", "unavailable"),
)
def get_job(job: KnownJob, laboratory: Lab) -> JobView:
    """State, progress, last metrics, attempts, and the links to its curves, checkpoints and MLflow run."""
    return _view(laboratory, job)


@router.post(
    "/{job_id:uuid}/cancel",
    status_code=202,
    operation_id="cancel_job",
    summary="Cancel a job",
    responses=documented("unknown-job", "already-ended", "invalid-parameter", "unavailable"),
)
def cancel_job(job: KnownJob, laboratory: Lab) -> JobView:
    """Wish that a job is cancelled.

    A job that waits is cancelled at once. A running one stops after the step that it is at and keeps a checkpoint;
    should it reach its end first, the end stands. Cancelling what is cancelled changes nothing and is answered alike;
    a job that ended otherwise is a conflict.
    """
    try:
        return _view(laboratory, laboratory.book.wish(job.id, Desired.CANCEL))
    except AlreadyEnded as error:
        raise Refused("already-ended", str(error)) from error


@router.get(
    "/{job_id:uuid}/checkpoints",
    operation_id="list_checkpoints",
    summary="The checkpoints of a job",
    responses=documented("unknown-job", "invalid-parameter", "unavailable"),
)
def list_checkpoints(job: KnownJob, laboratory: Lab) -> CheckpointList:
    """Every checkpoint that was committed, by step. Equal weights have equal hashes."""
    return CheckpointList(items=checkpoint_views(laboratory.book.checkpoints(job.id)), next=None)


def _view(laboratory: Laboratory, job: Job, obstacles: Mapping[str, Reason] | None = None) -> JobView:
    attempts = laboratory.book.attempts(job.id) if job.attempt else []
    obstacles = laboratory.book.obstacles([job]) if obstacles is None else obstacles
    return job_view(job, attempts, _run_page(laboratory, job), obstacles.get(job.id))


def _run_page(laboratory: Laboratory, job: Job) -> str | None:
    if job.mlflow_experiment_id is None or job.mlflow_run_id is None:
        return None
    return run_link(laboratory.settings.mlflow_links, job.mlflow_experiment_id, job.mlflow_run_id)


def _refuse_parameter(name: str, detail: str) -> Refused:
    return refuse("invalid-parameter", [Mistake(code="invalid-value", detail=detail, parameter=name)])
