"""What a worker and its trainer say to each other: one order in, then one JSON line per message out."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from normcore.records import Diverged, Finished, Metrics, Point, Remark, Stopped


@dataclass(frozen=True, slots=True)
class Order:
    """What a trainer is to do. Everything is text or a number, so that it is one line of JSON."""

    spec: str
    """The job's spec, as JSON."""
    folder: str
    """Where the attempt's checkpoints, figures and readings go."""
    resume: str | None
    """The folder of a verified checkpoint to go on from."""
    data_dir: str
    cache_dir: str
    hub: bool
    devices: int = 1
    """Processes that a training on the CPU may consist of."""
    others: dict[str, str] = field(default_factory=dict)
    """The folders of the last checkpoints of other jobs that probes name, by the jobs' ids; those that can be had."""

    def line(self) -> bytes:
        """The order as a line."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def of(cls, line: bytes) -> Self:
        """The order in a line."""
        return cls(**json.loads(line))


@dataclass(frozen=True, slots=True)
class Ready:
    """The trainer has imported everything and waits for an order."""

    device: str
    """What it computes on: `cpu`, or `cuda:<index>` among the GPUs that it can see."""
    facts: dict[str, str]
    """Versions and hardware, for the record."""
    gpus: int = 0
    """GPUs that it can see; 0 where it computes on the CPU."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A checkpoint stands whole on disk."""

    step: int
    path: str
    sha256: str
    bytes: int
    last: bool
    best: bool = False

    @property
    def kind(self) -> str:
        """`last` at the end, `best` where no evaluation of the validation set had been better, else `periodic`."""
        return "last" if self.last else "best" if self.best else "periodic"


@dataclass(frozen=True, slots=True)
class Made:
    """A file stands whole on disk and belongs to the run under `path`."""

    step: int
    path: str
    file: str


@dataclass(frozen=True, slots=True)
class Alive:
    """The training computes, and has nothing to tell yet."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The training could not go on: a stable word, and a sentence for the person who ordered it."""

    code: str
    detail: str


Message = Ready | Metrics | Kept | Made | Alive | Remark | Diverged | Stopped | Finished | Failed

_KINDS: dict[str, Any] = {
    kind.__name__: kind for kind in (Ready, Metrics, Kept, Made, Alive, Remark, Diverged, Stopped, Finished, Failed)
}


def encode(message: Message) -> bytes:
    r"""A message as a line.

    Example:
        >>> encode(Stopped(step=3))
        b'["Stopped", 3]\n'
    """
    values = [getattr(message, field.name) for field in fields(message)]
    return json.dumps([type(message).__name__, *values]).encode() + b"\n"


def decode(line: bytes) -> Message:
    """The message in a line.

    Example:
        >>> decode(encode(Metrics(step=2, points=(Point("train/loss", 2, 0.5),))))
        Metrics(step=2, points=(Point(key='train/loss', step=2, value=0.5),))
    """
    kind, *values = json.loads(line)
    if kind == Metrics.__name__:
        step, points = values
        return Metrics(step, tuple(Point(*point) for point in points))
    message: Message = _KINDS[kind](*values)
    return message
