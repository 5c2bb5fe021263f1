"""GET /v1/jobs/{job_id}/events: what happens to a job, as it happens (server-sent events)."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from typing import Annotated

from anyio import CapacityLimiter, sleep, to_thread
from fastapi import APIRouter, Header
from fastapi.sse import EventSourceResponse, ServerSentEvent

from api.answers import event_view, progress_event_view
from api.known_job import KnownJob
from api.laboratory import Lab
from api.problems import RETRY_AFTER_S, documented
from worker.book import TERMINAL, Book, BookUnavailable, Job, JobEvent, State

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

LOOK_EVERY_S = 0.5
BATCH = 500
"""Events that are replayed at a time."""


@router.get(
    "/{job_id:uuid}/events",
    operation_id="stream_events",
    summary="What happens to a job, as it happens",
    response_class=EventSourceResponse,
    response_description="A stream of server-sent events",
    responses=documented("unknown-job", "invalid-parameter", "unavailable"),
)
async def stream_events(
    job: KnownJob, laboratory: Lab, last_event_id: Annotated[int, Header(ge=0, le=2**31 - 1)] = 0
) -> AsyncIterable[ServerSentEvent]:
    """The events of a job from its first, then those to come, up to the one that ends it; then the stream ends.

    Each carries its number as `id` and its type as `event`, and an `EventView` as data; with the header
    `Last-Event-ID` the stream goes on after that number. While the job runs, `progress` events without an id tell how
    it stands, at most twice a second: a `ProgressEventView` each. Lines that begin with a colon keep the
    connection awake.
    """
    async for event in follow(laboratory.book, job.id, last_event_id, laboratory.watchers):
        yield event


async def follow(book: Book, job_id: str, after: int, limiter: CapacityLimiter) -> AsyncIterator[ServerSentEvent]:
    """The stream's events after a number.

    All streams look into the book through the limiter's few threads, so that many watchers do not take those of the
    other requests.
    """
    shown = None
    while True:
        try:
            job, events = await to_thread.run_sync(_look, book, job_id, after, limiter=limiter)
        except BookUnavailable:
            yield ServerSentEvent(comment="the order book does not answer; waiting for it")
            await sleep(RETRY_AFTER_S)
            continue
        for event in events:
            yield ServerSentEvent(event=event.type, id=str(event.seq), data=event_view(event))
            after = event.seq
        # The job was read before its events: without one, it had ended before the event that the stream began after.
        state = events[-1].state if events else job.state
        if state in TERMINAL:
            return
        if state is job.state is State.RUNNING and (progress := progress_event_view(job)) != shown:
            yield ServerSentEvent(event="progress", data=progress)
            shown = progress
        if len(events) < BATCH:
            await sleep(LOOK_EVERY_S)


def _look(book: Book, job_id: str, after: int) -> tuple[Job, list[JobEvent]]:
    job = book.job(job_id)
    assert job is not None, "jobs are never deleted"
    return job, book.events(job_id, after, BATCH)
