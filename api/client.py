"""The Python client: HTTP only, typed, with the shapes of `api.views`."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import httpx
from pydantic import ValidationError

from api.event_stream import read_events
from api.views import (
    CatalogView,
    CheckpointList,
    CheckpointView,
    EventView,
    JobList,
    JobView,
    MetricList,
    MetricView,
    PreviewView,
    Problem,
    ProgressEventView,
    ReadyView,
    View,
)
from normcore.spec import JobSpec
from worker.states import TERMINAL, State

Shape = TypeVar("Shape", bound=View)
Order = JobSpec | Mapping[str, Any] | bytes
"""A job to be ordered: a spec, its JSON as a mapping, or the JSON text itself."""

PAUSES_S = (0.2, 0.5)
"""Between the tries of a request that may be repeated."""
SILENCE_S = 45.0
"""A stream that is silent for longer, though the API pings every 15 s, is broken."""
PAGE = 100


class RequestRefused(Exception):
    """The API refused a request. `problem` is its answer; the message says all of it in sentences."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(_sentences(problem))
        self.problem = problem


class ApiUnreachable(ConnectionError):
    """Nothing that speaks as Normcore's API answers at the address."""


class Client:
    """A laboratory's API.

    Every request may be made twice without harm (an order has a key that makes it one), and so it is made again when
    the connection fails.

    Args:
        url: Where the API is.
        timeout_s: How long an answer may take.

    Example:
        ```
        with Client("http://127.0.0.1:8000") as client:
            job = client.submit({"model": {"kind": "mlp"}, "data": {"kind": "digits"}, "steps": 200})
            print(client.wait(job.id).metrics["test/accuracy"])
        ```
    """

    def __init__(self, url: str = "http://127.0.0.1:8000", *, timeout_s: float = 10.0) -> None:
        self.url = url.rstrip("/")
        self._timeout_s = timeout_s
        try:
            parts = urlsplit(self.url)
        except ValueError as error:
            raise ApiUnreachable(f"the API's address must look like http://host:8000, got {url!r}") from error
        if parts.scheme not in {"http", "https"} or parts.hostname is None:
            raise ApiUnreachable(f"the API's address must look like http://host:8000, got {url!r}")
        # A proxy from the environment is for the world outside, not for this machine.
        local = parts.hostname in {"127.0.0.1", "localhost", "::1"}
        self._http = httpx.Client(base_url=self.url, timeout=timeout_s, trust_env=not local)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def submit(self, order: Order, *, priority: int = 0, idempotency_key: str | None = None) -> JobView:
        """Order a job.

        Args:
            order: The job.
            priority: Higher goes first.
            idempotency_key: With the same key and the same order, the job of the first time is returned. Made up when
                not given, so that a repeated request does not order twice.

        Raises:
            RequestRefused: when the job cannot be built; `problem.errors` has every reason.
            ApiUnreachable: when the API does not answer.
        """
        return self._ask(
            JobView,
            "POST",
            "/v1/jobs",
            params={"priority": priority},
            content=_json(order),
            headers={"Content-Type": "application/json", "Idempotency-Key": idempotency_key or str(uuid.uuid4())},
        )

    def preview(self, order: Order) -> PreviewView:
        """What a job would be; refused in the same words as `submit` would be."""
        headers = {"Content-Type": "application/json"}
        return self._ask(PreviewView, "POST", "/v1/jobs/preview", content=_json(order), headers=headers)

    def job(self, job_id: str) -> JobView:
        """How a job stands."""
        return self._ask(JobView, "GET", f"/v1/jobs/{job_id}")

    def jobs(self, *, states: Collection[State] = (), labels: Mapping[str, str] | None = None) -> Iterator[JobView]:
        """The jobs, newest first, page by page as they are asked for.

        Args:
            states: Only jobs in one of these; all when empty.
            labels: Only jobs with all of these.
        """
        params = {
            "state": [state.value for state in states],
            "label": [f"{key}:{value}" for key, value in (labels or {}).items()],
            "limit": PAGE,
        }
        yield from self._pages(JobList, "/v1/jobs", params)

    def cancel(self, job_id: str) -> JobView:
        """Ask that a job be cancelled; a running one first writes a checkpoint."""
        return self._ask(JobView, "POST", f"/v1/jobs/{job_id}/cancel")

    def metrics(self, job_id: str, key: str | None = None) -> list[MetricView]:
        """The points of a job's curves, or of one of them, in the order of their steps."""
        params = {} if key is None else {"key": key}
        return list(self._pages(MetricList, f"/v1/jobs/{job_id}/metrics", params))

    def checkpoints(self, job_id: str) -> list[CheckpointView]:
        """The checkpoints of a job, in the order of their steps."""
        return list(self._pages(CheckpointList, f"/v1/jobs/{job_id}/checkpoints", {}))

    def catalog(self) -> CatalogView:
        """The menu, with JSON schemas."""
        return self._ask(CatalogView, "GET", "/v1/catalog")

    def ready(self) -> ReadyView:
        """Whether the laboratory can do its work, and what is missing where it cannot."""
        return self._ask(ReadyView, "GET", "/readyz")

    def events(
        self, job_id: str, *, after: int = 0, patience_s: float = 60.0
    ) -> Iterator[EventView | ProgressEventView]:
        """What happens to a job, from the event after number `after` to its end, as it happens.

        When the connection breaks it is made anew; no event is lost or doubled.

        Raises:
            RequestRefused: when there is no such job.
            ApiUnreachable: when the API has not answered for `patience_s` seconds.
        """
        heard_at = time.monotonic()
        while True:
            try:
                for event in self._stream(job_id, after):
                    heard_at = time.monotonic()
                    yield event
                    if isinstance(event, EventView):
                        after = event.seq
                        if event.state in TERMINAL:
                            return
            except (httpx.TransportError, RequestRefused) as error:
                if isinstance(error, RequestRefused) and error.problem.status < HTTPStatus.INTERNAL_SERVER_ERROR:
                    raise
                if time.monotonic() - heard_at > patience_s:
                    raise self._unreachable(error) from error
            time.sleep(PAUSES_S[-1])

    def wait(self, job_id: str) -> JobView:
        """The job when it has ended."""
        for _ in self.events(job_id):
            pass
        return self.job(job_id)

    def _ask(self, shape: type[Shape], method: str, path: str, **request: Any) -> Shape:
        response = self._send(method, path, **request)
        if response.is_error:
            raise self._refusal(response)
        try:
            # A newer API may say more than this client knows of.
            return shape.model_validate_json(response.content, extra="ignore")
        except ValidationError as error:
            raise self._foreign(response) from error

    def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        for pause in (*PAUSES_S, None):
            try:
                return self._http.request(method, path, **request)
            except httpx.TransportError as error:
                # An answer that takes too long is on its way: asking again would only take longer.
                if pause is None or isinstance(error, httpx.ReadTimeout):
                    raise self._unreachable(error) from error
                time.sleep(pause)
        raise AssertionError("unreachable: the last try returns or raises")

    def _pages(
        self, shape: type[JobList | MetricList | CheckpointList], path: str, params: dict[str, Any]
    ) -> Iterator[Any]:
        cursor: str | None = None
        while True:
            page = self._ask(shape, "GET", path, params=params if cursor is None else params | {"cursor": cursor})
            yield from page.items
            cursor = page.next
            if cursor is None:
                return

    def _stream(self, job_id: str, after: int) -> Iterator[EventView | ProgressEventView]:
        headers = {"Accept": "text/event-stream", **({"Last-Event-ID": str(after)} if after else {})}
        timeout = httpx.Timeout(self._timeout_s, read=SILENCE_S)
        with self._http.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers, timeout=timeout) as response:
            if response.is_error:
                response.read()
                raise self._refusal(response)
            for event in read_events(response.iter_lines()):
                shape = ProgressEventView if event.type == "progress" else EventView
                yield shape.model_validate_json(event.data, extra="ignore")

    def _refusal(self, response: httpx.Response) -> Exception:
        try:
            return RequestRefused(Problem.model_validate_json(response.content, extra="ignore"))
        except ValidationError:
            return self._foreign(response)

    def _foreign(self, response: httpx.Response) -> ApiUnreachable:
        kind = response.headers.get("Content-Type", "something without a type")
        return ApiUnreachable(
            f"{self.url} answers {response.status_code} with {kind}, which is not how Normcore answers; "
            "is another service at that address? Name the right one with --api or NORMCORE_API_URL"
        )

    def _unreachable(self, error: Exception) -> ApiUnreachable:
        return ApiUnreachable(
            f"no laboratory answers at {self.url} ({str(error) or type(error).__name__}); start one with "
            "`normcore up`, or say where it is with --api or NORMCORE_API_URL"
        )


def _json(order: Order) -> bytes:
    if isinstance(order, bytes):
        return order
    return (order.model_dump_json() if isinstance(order, JobSpec) else json.dumps(order)).encode()


def _sentences(problem: Problem) -> str:
    if not problem.errors:
        return problem.detail
    lines = [f"{problem.title}:"]
    for mistake in problem.errors:
        where = mistake.pointer or mistake.parameter or "the body"
        lines.append(f"  {where}{f' at {mistake.layer}' if mistake.layer else ''}: {mistake.detail}")
    return "\n".join(lines)
