"""GET /v1/jobs/{job_id}/metrics: the points of a job's curves, page by page."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from api.known_job import KnownJob
from api.laboratory import Lab
from api.parameters import MetricParameters
from api.problems import documented
from api.views import MetricList, MetricView
from worker.book import Book, MetricPoint

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])


@router.get(
    "/{job_id:uuid}/metrics",
    operation_id="list_metrics",
    summary="The curves of a job",
    responses=documented("unknown-job", "invalid-parameter", "unavailable"),
)
def list_metrics(job: KnownJob, laboratory: Lab, query: Annotated[MetricParameters, Query()]) -> MetricList:
    """The points of one curve or of all, by key and step. A key that the job does not have is an empty list.

    A value that was not finite is not here; `<key>_nonfinite` is 1 at its step.
    """
    points, cursor = _page(laboratory.book, job.id, query)
    items = [MetricView(key=point.key, step=point.step, value=point.value) for point in points]
    return MetricList(items=items, next=cursor)


def _page(book: Book, job_id: str, query: MetricParameters) -> tuple[list[MetricPoint], str | None]:
    """Points by key and step from the cursor `<step>:<key>` on, and the cursor of the next page."""
    step, _, first = (query.cursor or "").partition(":")
    # Sorted here, because databases do not agree on the order of strings.
    keys = sorted(book.metric_keys(job_id)) if query.key is None else [query.key]
    found: list[MetricPoint] = []
    for key in keys:
        if key >= first:
            after = int(step) if key == first else query.after_step
            found += book.metrics(job_id, key, after, query.limit + 1 - len(found))
        if len(found) > query.limit:
            last = found[query.limit - 1]
            return found[: query.limit], f"{last.step}:{last.key}"
    return found, None
