"""What the API answers with: one frozen model per shape. Times are ISO 8601 in UTC."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from normcore.spec import JobSpec
from worker.states import Desired, State


class View(BaseModel):
    """A shape of the API. Fields are documented by the strings under them, which OpenAPI shows."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


# --- problems ------------------------------------------------------------------------------------------------------


class Mistake(View):
    """One thing that is wrong with a request: where, which kind of mistake, and a sentence with the remedy."""

    code: str
    """A stable kebab-case word, such as `unknown-kind` or `groups-do-not-divide`."""
    detail: str
    """The rule, what was sent, and the remedy."""
    pointer: str | None = None
    """JSON pointer (RFC 6901) into the body."""
    parameter: str | None = None
    """The query parameter or header."""
    layer: str | None = None
    """The layer of the model that cannot be built."""


class Problem(View):
    """A refusal, as RFC 9457 has it, sent as `application/problem+json`."""

    type: str
    """Stable identifier of the kind of problem; a GET on it explains it."""
    title: str
    status: int
    detail: str
    """What is wrong with this request."""
    instance: str
    """The address that was asked."""
    errors: list[Mistake] | None = None
    """The single mistakes, at most twenty of them."""


# --- jobs ----------------------------------------------------------------------------------------------------------


class ProgressView(View):
    """How far a training has come."""

    step: int
    """Optimizer updates so far."""
    steps: int
    """Optimizer updates in all."""
    epoch: float
    """Passes over the training data so far."""
    steps_per_s: float | None
    eta_s: float | None
    """Seconds to the last step at this speed; null while the job does not run."""


class ReasonView(View):
    """Why a job or an attempt ended as it did, or why a job waits."""

    code: str
    """A stable word for programs."""
    detail: str
    """A sentence for people."""


class LinksView(View):
    """Where to go from here: paths of this API, and the run's page in MLflow once there is a run."""

    self: str
    events: str
    metrics: str
    checkpoints: str
    mlflow: str | None


class AttemptView(View):
    """One try at a job by one worker."""

    n: int
    """1 for the first attempt."""
    worker: str
    started_at: datetime
    ended_at: datetime | None
    outcome: str | None
    """`succeeded`, `diverged`, `failed`, `cancelled`, `paused`, `released`, `lost`, `exhausted`; null while it runs."""
    reason: ReasonView | None
    resumed_from: int | None
    """The step of the checkpoint that it went on from; 0 is a start from scratch, null is not known yet."""
    last_step: int | None
    """How far it had come when it ended."""
    resume_verified: bool | None
    """Whether its first step had, bit for bit, the loss that the checkpoint foretold. Null where nothing was foretold:
    it started from scratch, or the job is not `deterministic`.
    """


class JobView(View):
    """A job: what was ordered, how it stands, and where its results are."""

    id: str
    state: State
    desired: Desired
    """What the job is wished to do: `run`, or `cancel` once that was asked for."""
    name: str
    """Model, norm and noise, batch size, lr, seed; also the name of the MLflow run."""
    spec: JobSpec
    """The order, with every default filled in."""
    progress: ProgressView
    metrics: dict[str, float]
    """The last value of each curve."""
    attempts: list[AttemptView]
    study_id: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    reason: ReasonView | None
    waits: ReasonView | None
    """Why a queued job waits although a worker may be free: none that is alive has the device, or as many devices, as
    it asks for. Null where it only waits for its turn.
    """
    links: LinksView


class JobList(View):
    """A page of jobs, the newest first."""

    items: list[JobView]
    next: str | None
    """The `cursor` of the next page; null on the last."""


class MetricView(View):
    """One point of a curve."""

    key: str
    step: int
    value: float


class MetricList(View):
    """Points of curves, by key and then by step."""

    items: list[MetricView]
    next: str | None
    """The `cursor` of the next page; null on the last."""


class CheckpointView(View):
    """A checkpoint that can be resumed from or downloaded from the MLflow run."""

    step: int
    sha256: str
    """Of the tensors' bytes, so that equal weights mean equal hashes."""
    bytes: int
    kind: str
    """`last` for the one at the end; `best` where no evaluation of the validation set before it was better; else
    `periodic`.
    """
    best: bool
    """Whether it is the best one of the job so far by the validation set. The test set chooses nothing, so without a
    validation set there is no best.
    """


class CheckpointList(View):
    """The checkpoints of a job, in the order of their steps."""

    items: list[CheckpointView]
    next: str | None
    """Always null: there are few."""


class EventView(View):
    """Something that happened to a job; in the stream, `type` is also the name of the event and `seq` its id."""

    seq: int
    """1, 2, 3, ... within the job, without gaps."""
    at: datetime
    type: str
    """`submitted`, `dispatched`, `claimed`, `checkpoint`, `remark`, `lost`, ... up to one that ends the job."""
    state: State
    """The state of the job afterwards."""
    data: dict[str, Any]


class ProgressEventView(View):
    """How a running job stands: the data of the stream's `progress` events, which have no id and are not replayed."""

    state: State
    step: int
    """Optimizer updates so far."""
    steps: int
    """Optimizer updates in all."""
    steps_per_s: float | None
    eta_s: float | None
    """Seconds to the last step at this speed."""
    metrics: dict[str, float]
    """The last value of each curve."""


# --- before ordering -----------------------------------------------------------------------------------------------


class PreviewView(View):
    """What a job would be: its size and cost, computed without allocating or training anything."""

    name: str
    spec: JobSpec
    """The order, with every default filled in."""
    num_parameters: int
    flops_per_step: int
    """Floating point operations of one training step: forward and backward over one batch."""
    memory_mib: float
    """Estimate of the peak while training: weights, gradients, optimizer and activations."""
    num_steps: int
    steps_per_epoch: int


class PartView(View):
    """One part of the menu."""

    kind: str
    summary: str
    """What it is, in a sentence."""
    json_schema: dict[str, Any]
    """JSON schema of its knobs, with defaults and bounds."""


class CatalogView(View):
    """The menu: the parts of every family, and the schema of a whole job."""

    families: dict[str, list[PartView]]
    """The parts by the field of the job that they go into."""
    job: dict[str, Any]
    """JSON schema of the body of POST /v1/jobs."""


# --- health --------------------------------------------------------------------------------------------------------


class LiveView(View):
    """The process answers."""

    status: Annotated[str, Field(examples=["ok"])]


class ReadyView(View):
    """Whether the laboratory can do its work: `ok`, or `degraded` where orders are taken but something is missing."""

    status: Annotated[str, Field(examples=["ok", "degraded"])]
    checks: dict[str, str]
    """`ok` or what is wrong, for each of database, redis, mlflow, workers and preview."""
