"""Which services a laboratory on one machine has, in which environment they run, and how each shows it is ready."""

from __future__ import annotations

import http.client
import re
import sys
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

from api.embedded.broker import Broker
from api.embedded.ports import Listener
from api.embedded.service import Life, Service
from worker.settings import Settings

ANSWER_TIMEOUT_S = 1.0
DRAIN_S = 15.0
"""What a worker needs to stop beyond its training's own grace: telling the book and MLflow."""


def listeners(settings: Settings) -> tuple[Listener, ...]:
    """The ports that are needed."""
    api = Listener("the API", settings.api_host, settings.api_port, "NORMCORE_API_PORT")
    if _mlflow_is_given(settings):
        return (api,)
    return (api, Listener("MLflow", settings.api_host, settings.mlflow_port, "NORMCORE_MLFLOW_PORT"))


def api_url(settings: Settings) -> str:
    """Where this machine reaches the API."""
    return _local_url(settings.api_host, settings.api_port)


def mlflow_url(settings: Settings) -> str:
    """Where this machine reaches MLflow: the one that was given, else the embedded one."""
    return settings.mlflow_url if _mlflow_is_given(settings) else _local_url(settings.api_host, settings.mlflow_port)


def environment(settings: Settings, broker: Broker | None, inherited: Mapping[str, str]) -> dict[str, str]:
    """The services' environment: the inherited one, the addresses, and folders that need no home."""
    state = settings.state_dir.absolute()
    ours = {
        "NORMCORE_STATE_DIR": str(state),
        "NORMCORE_DATA_DIR": str(settings.data_dir.absolute()),
        "NORMCORE_REDIS_URL": settings.broker if broker is None else broker.url,
        "NORMCORE_MLFLOW_URL": mlflow_url(settings),
        # A folder named `api` or `worker` where the laboratory is started must not be taken for ours.
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # The job runner is for judging language models and takes a gigabyte.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    defaults = {"HOME": str(state / "home"), "MPLCONFIGDIR": str(state / "cache" / "matplotlib")}
    return defaults | dict(inherited) | ours


def lineup(settings: Settings, broker: Broker | None) -> tuple[Service, ...]:
    """The services in the order in which people read them; `broker` is None where a Redis is given."""
    api = api_url(settings)
    python = (sys.executable, "-m")
    listen = ("--host", settings.api_host, "--port")
    services = [
        Service(name="migrations", command=(*python, "worker.migrate")),
        # The API needs the tables only when it is asked, which nobody does before it is ready: it starts at once.
        Service(
            name="api",
            command=(
                *(*python, "uvicorn", "--factory", "api.app:create_app", *listen, str(settings.api_port)),
                *("--timeout-graceful-shutdown", "2"),  # a stream of events would hold it up for good
            ),
            is_ready=answers(f"{api}/livez"),
            stop_round=1,
        ),
        Service(
            name="scheduler",
            command=(*python, "worker.scheduler"),
            is_ready=_logged("the scheduler is at work"),
            after=("migrations",),
        ),
        *(
            Service(
                name=service,
                command=(*python, "worker.run"),
                environment={"NORMCORE_WORKER_NAME": name},
                is_ready=_logged(rf"{re.escape(name)}@\S+ ready\."),
                after=("migrations", *(() if broker is None else ("broker",))),
                stop_grace_s=settings.stop_grace_s + DRAIN_S,
            )
            for service, name in _workers(settings)
        ),
    ]
    if broker is not None:
        services.insert(
            0, Service(name="broker", command=broker.command, is_ready=lambda _: broker.answers(), stop_round=2)
        )
    if not _mlflow_is_given(settings):
        folder = settings.state_dir.absolute() / "mlflow"
        folder.mkdir(parents=True, exist_ok=True)
        services.append(
            Service(
                name="mlflow",
                command=(
                    *(*python, "mlflow", "server", *listen, str(settings.mlflow_port), "--workers", "1"),
                    *("--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"),
                    *("--artifacts-destination", settings.mlflow_artifacts or str(folder / "artifacts")),
                ),
                is_ready=answers(f"{mlflow_url(settings)}/health"),
                after=("api",),  # its imports would keep the API's from the processor, and nobody waits for it
                stop_round=1,
            )
        )
    return tuple(services)


def _workers(settings: Settings) -> list[tuple[str, str]]:
    """The services and the names of the workers, one for each slot."""
    if settings.slots == 1:
        return [("worker", settings.worker_name)]
    return [(f"worker-{slot}", f"{settings.worker_name}-{slot}") for slot in range(1, settings.slots + 1)]


def answers(url: str) -> Callable[[Life], bool]:
    """A service is ready when a GET is answered with 200."""
    parts = urlsplit(url)

    def ready(_: Life) -> bool:
        connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=ANSWER_TIMEOUT_S)
        try:
            connection.request("GET", parts.path)
            return connection.getresponse().status == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    return ready


def _logged(pattern: str) -> Callable[[Life], bool]:
    """A service that does not listen is ready when it says so; the book's word may still be of an earlier life."""
    return lambda life: re.search(pattern, life.tail()) is not None


def _mlflow_is_given(settings: Settings) -> bool:
    return "mlflow_url" in settings.model_fields_set


def _local_url(host: str, port: int) -> str:
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - this is where one listens on all
    return f"http://[{reached}]:{port}" if ":" in reached else f"http://{reached}:{port}"
