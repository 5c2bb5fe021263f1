"""What the order book hands out: frozen rows, with times as epoch seconds on the database's clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from normcore.spec import JobSpec
from worker.states import Desired, State


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a job ended as it did: a stable word for programs and a sentence for people."""

    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class Job:
    """One training that was ordered."""

    id: str
    name: str
    state: State
    desired: Desired
    spec: JobSpec
    labels: Mapping[str, str]
    priority: int
    created_at: float
    started_at: float | None
    """When the first attempt began."""
    finished_at: float | None
    progress_step: int
    num_steps: int
    epoch: float
    """Passes over the training data so far."""
    steps_per_s: float | None
    last_metrics: Mapping[str, float]
    """The newest value of each curve."""
    attempt: int
    """Attempts begun so far."""
    infra_retries: int
    """Attempts that were lost to the infrastructure."""
    reason: Reason | None
    mlflow_run_id: str | None
    mlflow_experiment_id: str | None
    study_id: str | None
    dispatch_seq: int

    @property
    def reason_code(self) -> str | None:
        """The reason's code, where there is a reason."""
        return self.reason.code if self.reason else None

    @property
    def reason_detail(self) -> str | None:
        """The reason's sentence, where there is a reason."""
        return self.reason.detail if self.reason else None


@dataclass(frozen=True, slots=True)
class Submission:
    """A job, and whether this very submission created it or an idempotency key found it."""

    job: Job
    created: bool


@dataclass(frozen=True, slots=True)
class Page:
    """Jobs, newest first, and the cursor of the next page where there is one."""

    items: tuple[Job, ...]
    next: str | None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at a job, numbered from 1."""

    n: int
    worker: str
    started_at: float
    ended_at: float | None
    outcome: str | None
    """The event that ended it: succeeded, diverged, failed, cancelled, paused, released, lost or exhausted."""
    reason: Reason | None
    resumed_from: int | None
    """The step of the checkpoint it went on from; 0 is a start from scratch, None is not known yet."""
    last_step: int | None
    """How far it had come when it ended."""
    resume_verified: bool | None = None
    """Whether its first step had, bit for bit, the loss that the checkpoint foretold; None where none did."""


@dataclass(frozen=True, slots=True)
class CheckpointRow:
    """A committed checkpoint. `sha256` is of the tensors' bytes, so that equal weights mean equal hashes."""

    step: int
    attempt: int
    kind: str
    """`last` at the end, `best` where no evaluation of the validation set had been better, else `periodic`."""
    sha256: str
    bytes: int
    path: str | None
    """The folder on the worker's disk; None once it was deleted there to make room."""
    created_at: float
    best: bool = False
    """Whether no evaluation of the validation set up to its step was better; of several the newest is the best."""


@dataclass(frozen=True, slots=True)
class JobEvent:
    """Something that happened to a job. `seq` counts 1, 2, 3, ... within the job, without gaps."""

    job_id: str
    seq: int
    at: float
    type: str
    """`submitted`, `wish`, `checkpoint`, `resumed_from`, `remark`, or the value of a `worker.states.Event`."""
    state: State
    """The state that the job was in afterwards."""
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class MetricPoint:
    """One value of one curve."""

    key: str
    step: int
    value: float


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """A worker, as it last made itself known."""

    name: str
    pool: str
    device: str
    seen_at: float | None
    live: bool
    """Seen within the lease's time to live."""
    job_id: str | None
    """The job whose lease it holds."""


@dataclass(frozen=True, slots=True)
class Dispatch:
    """A job handed to a pool: what the queue's message is made of. An old `dispatch_seq` is worth nothing."""

    job_id: str
    dispatch_seq: int
    pool: str


@dataclass(frozen=True, slots=True)
class Claim:
    """The right to run one attempt: everything it writes is guarded by the token."""

    job_id: str
    token: str
    attempt: int
    spec: JobSpec
    checkpoints: tuple[CheckpointRow, ...]
    """Committed checkpoints, newest first; of those without a path the files are in MLflow alone."""
    mlflow_run_id: str | None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a training has come."""

    step: int
    epoch: float = 0.0
    steps_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class Lease:
    """A renewed lease, and what the person wishes meanwhile."""

    desired: Desired
    expires_at: float


@dataclass(frozen=True, slots=True)
class Mended:
    """What one reconciliation put right, by job id."""

    requeued: tuple[str, ...] = ()
    """Leases that had run out; the jobs are queued again."""
    failed: tuple[str, ...] = ()
    """Leases that had run out once too often."""
    stopped: tuple[str, ...] = ()
    """Leases that had run out on jobs that were to be cancelled or paused anyway."""
    unclaimed: tuple[str, ...] = ()
    """Dispatches that no worker had claimed in time; the jobs are queued again."""

    def __bool__(self) -> bool:
        """Whether anything was put right."""
        return bool(self.requeued or self.failed or self.stopped or self.unclaimed)
