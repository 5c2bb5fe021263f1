"""GET /metrics: the laboratory in figures, as Prometheus reads them. A job's curves are `api.metrics`, not this."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version

from fastapi import APIRouter, Response
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from api.health import OK, mlflow_health, redis_health
from api.laboratory import Lab
from worker.book import Census
from worker.spool import Spool

router = APIRouter(include_in_schema=False)

Series = Iterable[tuple[tuple[str, ...], float]]
"""The values of a family, each after the values of its labels."""

REASONS = ("backoff", "busy", "no-gpu", "no-worker", "too-few-devices")
"""What queued jobs can wait for: each is told also where no job does, so that a graph of it has no holes."""


@router.get("/metrics")
def metrics(laboratory: Lab) -> Response:
    """What an operator watches; 503 without a database. 17 ms with ten thousand jobs in SQLite, up to 1 s more where
    Redis and MLflow are silent.
    """
    settings = laboratory.settings
    spools = Spool.paths(settings.state_dir / "spool")
    census = laboratory.book.census({path.name.partition(".")[0] for path in spools})
    answers = {
        "redis": redis_health(settings.broker) == OK,
        "mlflow": mlflow_health(settings.mlflow_url) == OK,
    }
    registry = CollectorRegistry()
    registry.register(Figures(census, answers))
    registry.register(laboratory.traffic)
    ProcessCollector(registry=registry)
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)


class Figures(Collector):
    """A census, and which of the services beside answer, as Prometheus' families."""

    def __init__(self, census: Census, answers: Mapping[str, bool]) -> None:
        self._census = census
        self._answers = answers

    def collect(self) -> Iterator[Metric]:
        """Every family, also those that have nothing to tell yet."""
        yield _gauge("normcore_build_info", "The version that answers.", ["version"], [((version("normcore"),), 1)])
        yield _gauge(
            "normcore_service_up",
            "Whether a service beside the API answers it; orders are taken without.",
            ["service"],
            (((name,), there) for name, there in self._answers.items()),
        )
        yield _gauge("normcore_schedulers", "Schedulers at work.", [], [((), self._census.schedulers)])
        workers = Counter((w.pool, w.device, "busy" if w.job_id else "idle") for w in self._census.workers)
        yield _gauge("normcore_workers", "Workers that are alive.", ["pool", "device", "state"], workers.items())
        yield from self._jobs()
        yield from self._running()
        yield from self._attempts()

    def _jobs(self) -> Iterator[Metric]:
        census, queues = self._census, {queue.reason: queue for queue in self._census.queues}
        reasons = sorted({*REASONS, *queues})
        states = (((state.value,), n) for state, n in census.states.items())
        yield _gauge("normcore_jobs", "Jobs by state.", ["state"], states)
        yield _gauge(
            "normcore_queued_jobs",
            "Queued jobs by what they wait for.",
            ["reason"],
            (((reason,), queues[reason].jobs if reason in queues else 0) for reason in reasons),
        )
        yield _gauge(
            "normcore_queued_oldest_age_seconds",
            "Since the oldest queued job was ordered.",
            ["reason"],
            (((reason,), queues[reason].oldest_age_s if reason in queues else 0) for reason in reasons),
        )
        waits = HistogramMetricFamily("normcore_job_wait_seconds", "From a job's order to its first attempt.")
        buckets = [(str(bound), float(n)) for bound, n in census.waits.up_to.items()]
        waits.add_metric([], [*buckets, ("+Inf", float(census.waits.jobs))], census.waits.total_s)
        yield waits
        yield _gauge(
            "normcore_unsent_jobs",
            "Jobs that have ended and whose record waits in the state folder for MLflow.",
            [],
            [((), census.unsent.jobs)],
        )
        yield _gauge(
            "normcore_unsent_oldest_age_seconds",
            "Since the first of these jobs ended.",
            [],
            [((), census.unsent.oldest_age_s)],
        )

    def _running(self) -> Iterator[Metric]:
        labels = ["job_id", "worker"]
        running = [((job.id, job.worker), job) for job in self._census.running]
        steps = ((key, job.step) for key, job in running)
        yield _gauge("normcore_running_job_steps", "Steps that a running job has done.", labels, steps)
        progress = ((key, job.step / job.num_steps) for key, job in running)
        yield _gauge("normcore_running_job_progress_ratio", "Steps done of those to do.", labels, progress)
        speed = ((key, job.steps_per_s) for key, job in running if job.steps_per_s is not None)
        yield _gauge("normcore_running_job_steps_per_second", "Speed of a running job.", labels, speed)
        yield _gauge(
            "normcore_running_job_heartbeat_age_seconds",
            "Since the worker of a running job last renewed its lease.",
            labels,
            ((key, job.heartbeat_age_s) for key, job in running),
        )

    def _attempts(self) -> Iterator[Metric]:
        census = self._census
        yield _counter("normcore_attempts_started", "Attempts at jobs.", [], [((), census.attempts)])
        yield _counter("normcore_attempts_repeated", "Attempts after a job's first.", [], [((), census.repeated)])
        yield _counter(
            "normcore_attempts_ended",
            "Attempts by how and why they ended.",
            ["outcome", "reason"],
            (((ending.outcome, ending.reason), ending.attempts) for ending in census.endings),
        )


def _gauge(name: str, help_text: str, labels: list[str], series: Series) -> Metric:
    family = GaugeMetricFamily(name, help_text, labels=labels)
    for values, value in series:
        family.add_metric(values, value)
    return family


def _counter(name: str, help_text: str, labels: list[str], series: Series) -> Metric:
    family = CounterMetricFamily(name, help_text, labels=labels)
    for values, value in series:
        family.add_metric(values, value)
    return family
