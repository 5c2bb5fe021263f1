"""What the training loop yields. The loop does not know who listens: a notebook, a test, or a worker's recorder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Point(NamedTuple):
    """One value of one curve."""

    key: str
    step: int
    value: float


@dataclass(frozen=True, slots=True)
class Metrics:
    """A batch of points, in the order of their steps, and how far the training has come."""

    step: int
    """Optimizer updates so far."""
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Reading:
    """What a probe saw at a step: scalars become curves, arrays are kept for the probe's figure.

    All readings of a probe in a training have arrays of the same names and lengths.
    """

    probe: str
    step: int
    scalars: Mapping[str, float]
    arrays: Mapping[str, tuple[float, ...]]
    layers: tuple[str, ...] = ()
    """The module paths that the values of an array per layer belong to."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What must be known to read the numbers, such as `bn_mode`, the same at every reading."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that a training needs to go on: the bits of the run after `step` updates.

    `tensors` maps flat names (`model.*`, `optimizer.*`, `learner.*`, `rng.*`, `readings.*`, `next.loss`) to CPU
    tensors, `facts` is plain JSON.
    """

    step: int
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A snapshot to be kept. `last` says that no update will follow, `best` that no evaluation of the validation set so
    far was better than the one at this step.
    """

    step: int
    snapshot: Snapshot
    last: bool = False
    best: bool = False


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawing of a probe's readings, as PNG bytes."""

    name: str
    png: bytes


@dataclass(frozen=True, slots=True)
class Remark:
    """Something that whoever reads the results should know of how they came about."""

    step: int
    code: str
    """A stable word, once per training."""
    detail: str
    """A sentence."""


@dataclass(frozen=True, slots=True)
class Diverged:
    """The loss left the finite numbers: the training ends here, and that is a result."""

    step: int
    loss: float
    layer: str | None
    """The first layer in forward order whose parameters or output are not finite, where there is one."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """The training was asked to stop and did so between two steps, after its checkpoint."""

    step: int


@dataclass(frozen=True, slots=True)
class Finished:
    """All steps are done."""

    step: int


Record = Metrics | Reading | Checkpoint | Figure | Remark | Diverged | Stopped | Finished
