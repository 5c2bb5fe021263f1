"""/livez and /readyz: whether the process answers, and whether the laboratory can do its work."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter

from api.laboratory import Lab
from api.problems import documented
from api.views import LiveView, ReadyView

router = APIRouter(tags=["health"])

TIMEOUT_S = 0.5
"""How long Redis and MLflow may take to answer; they stand beside."""

OK = "ok"


@router.get("/livez", operation_id="livez", summary="Does the process answer?")
async def livez() -> LiveView:
    """Always `ok`, without looking at anything else."""
    return LiveView(status=OK)


@router.get("/readyz", operation_id="readyz", summary="Can the laboratory work?", responses=documented("unavailable"))
def readyz(laboratory: Lab) -> ReadyView:
    """`ok`, or `degraded` where orders are taken but Redis, MLflow or a worker is missing; 503 without a database."""
    laboratory.book.ping()
    settings = laboratory.settings
    live = [worker for worker in laboratory.book.workers() if worker.live]
    checks = {
        "database": OK,
        "redis": redis_health(settings.broker),
        "mlflow": mlflow_health(settings.mlflow_url),
        "workers": OK if live else "no worker is alive; orders wait until one is",
        "preview": laboratory.previewer.trouble or OK,
    }
    return ReadyView(status=OK if set(checks.values()) == {OK} else "degraded", checks=checks)


def redis_health(url: str) -> str:
    """`ok`, or why Redis does not answer."""
    from redis import Redis, RedisError

    # Kombu and redis-py call the same socket by different schemes.
    if url.startswith("redis+socket://"):
        url = "unix://" + url.removeprefix("redis+socket://").partition("?")[0]
    try:
        with Redis.from_url(url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S) as redis:
            redis.ping()
    except RedisError as error:
        return f"does not answer: {type(error).__name__}; orders wait until it does"
    return OK


def mlflow_health(url: str) -> str:
    """`ok`, or why MLflow does not answer."""
    import httpx

    try:
        # Without TLS there are no certificates to read, which takes longer than the answer.
        tls = url.startswith("https:")
        address = f"{url.rstrip('/')}/health"
        status = httpx.get(address, timeout=TIMEOUT_S, trust_env=False, verify=tls).status_code
    except httpx.HTTPError as error:
        return f"does not answer: {type(error).__name__}; workers keep what they record until it does"
    return OK if status == HTTPStatus.OK else f"answers {status}; workers keep what they record until it does"
