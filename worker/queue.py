"""The queue: Celery's one door. A message is a bell that says `{job_id, dispatch_seq}`; the order book is the truth.

Lost, late and doubled messages are harmless: a claim compares the number, and the scheduler dispatches again what
nobody claimed. So the settings ask for speed and calm, not for redelivery, which Redis does badly for long tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from celery import Celery
from celery.exceptions import OperationalError
from celery.signals import worker_shutting_down
from redis.exceptions import RedisError

from worker.pools import Pool
from worker.settings import settings

TASK = "normcore.run"
"""The one task; its keyword arguments are `job_id: str` and `dispatch_seq: int`."""

VISIBILITY_TIMEOUT_S = 3600


class QueueUnavailable(ConnectionError):
    """Redis cannot be reached; the order book keeps the work until it can."""


def queue_of(pool: str) -> str:
    """The name of a pool's queue, which its workers listen to.

    Example:
        >>> queue_of("cpu")
        'normcore.cpu'
    """
    return f"normcore.{Pool.named(pool).name}"


def make_app(broker: str) -> Celery:
    """A Celery app on a Redis URL, with the settings under which jobs are neither lost, doubled nor hoarded."""
    app = Celery("normcore", broker=broker, set_as_current=False)
    app.conf.update(
        # Only JSON: whoever can write to Redis must not be able to run code.
        task_serializer="json",
        accept_content=["json"],
        # With a result backend a publish blocks for 19 s when Redis is away.
        result_backend=None,
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        # Acknowledged before it runs: the lease decides what happens when a worker dies, and a late acknowledgement
        # makes Redis deliver a task again that runs longer than the visibility timeout.
        task_acks_late=False,
        task_reject_on_worker_lost=False,
        # Waiting jobs stay in the order book, where priority and cancel are plain SQL.
        worker_disable_prefetch=True,
        worker_prefetch_multiplier=1,
        # Only threads acknowledge early, drain on a signal and start no training by fork.
        worker_pool="threads",
        worker_concurrency=1,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        # With this on, a restart of Redis kills the running job and its message is gone.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "visibility_timeout": VISIBILITY_TIMEOUT_S,
            "socket_timeout": 10,
            "socket_connect_timeout": 3,
            "socket_keepalive": not broker.startswith("redis+socket:"),
            "health_check_interval": 10,
            "global_keyprefix": "normcore:",
        },
        # A queue for each pool, made when its first worker listens or its first message is sent.
        task_create_missing_queues=True,
        task_default_queue=queue_of("cpu"),
    )
    return app


app = make_app(settings().broker)
"""The app of this process, on the broker that the settings name."""


def publish(job_id: str, dispatch_seq: int, pool: str = "cpu", *, via: Celery = app) -> None:
    """Ring for a pool: one of its workers shall claim the job. Never call it within a transaction.

    Raises:
        QueueUnavailable: Redis cannot be reached; the dispatch is made again when it was not claimed in time.
    """
    message = {"job_id": job_id, "dispatch_seq": dispatch_seq}
    with _connection(via, timeout_s=10) as connection:
        via.send_task(
            TASK, kwargs=message, queue=queue_of(pool), connection=connection, retry=False, ignore_result=True
        )


def ping(*, via: Celery = app) -> None:
    """Ask the queue whether it is there.

    Raises:
        QueueUnavailable: it is not.
    """
    with _connection(via, timeout_s=2) as connection:
        connection.default_channel.client.ping()


def on_shutdown(callback: Callable[[], None]) -> None:
    """Call back, in the signal handler, when this process's Celery worker is asked to end; tasks still run then."""

    def called(**_facts: Any) -> None:
        callback()

    worker_shutting_down.connect(called, weak=False)


@contextmanager
def _connection(via: Celery, *, timeout_s: int) -> Iterator[Any]:
    # A connection of its own, which fails at the first refusal: the pooled ones try again for six seconds.
    patience = {"max_retries": 0, "socket_timeout": timeout_s, "socket_connect_timeout": min(timeout_s, 3)}
    try:
        with via.connection_for_write(transport_options=patience) as connection:
            yield connection
    except (OperationalError, RedisError, OSError) as error:
        raise QueueUnavailable(
            f"the queue must answer, got {error!s}; start Redis or set NORMCORE_REDIS_URL"
        ) from error
