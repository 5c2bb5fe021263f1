"""The requests that the API answered: how many, with which status, and how soon. An ASGI middleware counts them."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
OTHER = "other"
"""Of a method that is none of these, and of an address that is none of ours: whoever asks invents no series."""


class Traffic:
    """What was counted since the process began. Safe to share between threads.

    Example:
        >>> traffic = Traffic()
        >>> traffic.count("GET", "/livez", 200, 0.002)
        >>> [(sample.labels["status"], sample.value) for sample in next(traffic.collect()).samples]
        [('200', 1)]
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, str, str]] = Counter()
        self._buckets: dict[tuple[str, str], list[int]] = {}
        self._seconds: dict[tuple[str, str], float] = {}

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request and the seconds until its answer began."""
        with self._lock:
            self._requests[method, route, str(status)] += 1
            buckets = self._buckets.setdefault((method, route), [0] * (len(BOUNDS_S) + 1))
            buckets[bisect_left(BOUNDS_S, seconds)] += 1
            self._seconds[method, route] = self._seconds.get((method, route), 0.0) + seconds

    def collect(self) -> Iterator[Metric]:
        """The families for Prometheus."""
        requests = CounterMetricFamily(
            "normcore_http_requests", "Requests answered.", labels=["method", "route", "status"]
        )
        latency = HistogramMetricFamily(
            "normcore_http_request_duration_seconds",
            "Until the answer began; a stream of events goes on after that.",
            labels=["method", "route"],
        )
        with self._lock:
            for labels, n in self._requests.items():
                requests.add_metric(labels, n)
            for where, buckets in self._buckets.items():
                latency.add_metric(where, _cumulated(buckets), self._seconds[where])
        yield requests
        yield latency


class TrafficMiddleware:
    """Counts every HTTP request by the template of its route, such as `/v1/jobs/{job_id}`."""

    def __init__(self, app: ASGIApp, traffic: Traffic) -> None:
        self._app = app
        self._traffic = traffic

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and count it when its answer begins, or when nothing answered it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin, answered = time.perf_counter(), False

        def count(status: int) -> None:
            method = scope["method"] if scope["method"] in METHODS else OTHER
            # The router leaves the route that it chose in the scope.
            route = getattr(scope.get("route"), "path_format", OTHER)
            self._traffic.count(method, route, status, time.perf_counter() - begin)

        async def counted(message: Message) -> None:
            nonlocal answered
            if message["type"] == "http.response.start" and not answered:
                answered = True
                count(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, counted)
        except Exception:
            if not answered:
                count(500)  # which the outermost layer answers with
            raise


def _cumulated(buckets: list[int]) -> list[tuple[str, float]]:
    bounds = [*map(str, BOUNDS_S), "+Inf"]
    return [(bound, float(sum(buckets[: position + 1]))) for position, bound in enumerate(bounds)]
