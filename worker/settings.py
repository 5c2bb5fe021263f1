"""The settings: environment variables with the same names embedded and under compose."""

from __future__ import annotations

import socket
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

Seconds = Annotated[float, Field(gt=0)]


class Settings(BaseSettings):
    """Every setting of the service, with its default. `NORMCORE_STATE_DIR` is read into `state_dir`, and so on.

    A variable that is empty counts as one that is not set.

    Example:
        >>> Settings(state_dir="/srv/normcore").database
        'sqlite:////srv/normcore/normcore.db'
    """

    model_config = SettingsConfigDict(
        env_prefix="NORMCORE_", env_ignore_empty=True, use_attribute_docstrings=True, validate_default=True
    )

    state_dir: Path = Path("var")
    """Databases, checkpoints, spools, caches and logs of an embedded laboratory."""
    data_dir: Path = Path("data")
    """Where datasets lie, in the Hugging Face folder layout (`uoft-cs/cifar10/...`)."""
    hub: bool = True
    """Fetch datasets that are not in the data folder from the Hugging Face hub."""
    database_url: SecretStr | None = None
    """SQLAlchemy URL of the order book; SQLite in the state folder when unset."""
    redis_url: Annotated[
        SecretStr | None,
        Field(default=None, validation_alias=AliasChoices("NORMCORE_REDIS_URL", "REDIS_URL", "redis_url")),
    ]
    """Redis or Valkey; the embedded laboratory starts its own when unset."""
    mlflow_url: str = "http://127.0.0.1:5000"
    """Where workers and the API reach MLflow."""
    mlflow_public_url: str | None = None
    """Where people reach MLflow, for links; the same as the above when unset."""
    mlflow_experiment: str = "normcore"
    """The MLflow experiment that jobs are recorded in."""
    mlflow_artifacts: str | None = None
    """Where our MLflow keeps artifacts: a folder, or such as `s3://bucket/path`; in the state folder when unset."""
    api_url: str | None = None
    """Where the client and the command line find the API; this machine, at the port below, when unset."""
    api_host: str = "127.0.0.1"
    """The address the API and the embedded MLflow listen on."""
    api_port: Annotated[int, Field(ge=1, le=65535)] = 8000
    """The port the API listens on."""
    mlflow_port: Annotated[int, Field(ge=1, le=65535)] = 5000
    """The port the embedded MLflow listens on."""
    worker_name: str = Field(default_factory=socket.gethostname)
    """The name of a worker; two workers at once need two names."""
    device: Literal["auto", "cpu"] | Annotated[str, Field(pattern=r"^cuda(:\d+)?$")] = "auto"
    """The device a worker trains on; auto is the GPU where there is one."""
    devices: Annotated[int, Field(ge=1)] = 1
    """Processes that a job may use on a worker's CPU; on GPUs it may use as many as it sees. Larger jobs wait."""
    slots: Annotated[int, Field(ge=1, le=64)] = 1
    """Jobs that train at once on a device: so many workers are started, each with its share of GPU memory or cores."""
    threads: Annotated[int, Field(ge=0)] = 0
    """Threads a training computes with on the CPU, all its processes together; 0 is its share of the cores."""
    heartbeat_s: Seconds = 1.0
    """How often a worker renews its lease and hears of cancellations."""
    lease_ttl_s: Seconds = 30.0
    """A worker silent for this long has lost its job."""
    scheduler_tick_s: Seconds = 0.1
    """How often the scheduler looks for work to hand out."""
    reconcile_every_s: Seconds = 2.0
    """How often the scheduler looks for lost leases and unclaimed dispatches."""
    beat: Path | None = None
    """A file that a scheduler or a worker touches while it is at work, for whoever looks after its process."""
    dispatch_timeout_s: Seconds = 60.0
    """A dispatch that no worker claims within this time is made again."""
    stop_grace_s: Seconds = 30.0
    """How long a training may take to write its last checkpoint when it is stopped."""
    hang_timeout_s: Seconds = 600.0
    """A training that makes no progress for this long is ended."""
    max_infra_retries: Annotated[int, Field(ge=0)] = 5
    """How many times a job is tried again after its worker or trainer was lost."""
    laboratory: str | None = None
    """On another machine: the laboratory's gate, `host:port`, that `normcore join` works for."""
    machine_key: SecretStr | None = None
    """On another machine: its key, the line that `make machine` printed in the laboratory."""
    gate_port: Annotated[int, Field(ge=1, le=65535)] = 8022
    """The port the gate listens on, where other machines join."""
    keep_checkpoints: Annotated[int, Field(ge=1)] = 2
    """Newest checkpoints kept on disk of each job, besides the best; once it has ended, the last and the best."""

    @property
    def database(self) -> str:
        """The SQLAlchemy URL of the order book."""
        if self.database_url is not None:
            return self.database_url.get_secret_value()
        return f"sqlite:///{self.state_dir.absolute() / 'normcore.db'}"

    @property
    def broker(self) -> str:
        """The Redis URL of the queue: the one given, or the embedded server's socket."""
        if self.redis_url is not None:
            return self.redis_url.get_secret_value()
        return f"redis+socket://{self.state_dir.absolute() / 'valkey.sock'}?virtual_host=0"

    @property
    def mlflow_links(self) -> str:
        """The MLflow address that is handed to people, without a trailing slash."""
        return (self.mlflow_public_url or self.mlflow_url).rstrip("/")


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The settings of this process, read once."""
    return Settings()
