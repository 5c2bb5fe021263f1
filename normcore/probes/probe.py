"""What every probe promises."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from normcore.probes.moment import Moment
from normcore.records import Reading

Sees = Literal["step", "update", "end"]
"""When a probe measures: between the backward pass of a step and its update; after the update, with the weights of
before it and of after it; or once, at the end of the training, with the last weights."""


class Probe(Protocol):
    """Something that is measured while a model trains, and leaves no footprints: the training goes on as if unseen.

    A reading happens within `normcore.probes.footprints.no_footprints`: a probe may move, run and differentiate the
    model as it likes, and it is put back bit for bit. Hooks it must remove itself. One that raises is reported as a
    remark and asked no more.
    """

    kind: ClassVar[str]
    """The name its curves stand under."""
    sees: ClassVar[Sees]
    evaluates: ClassVar[bool]
    """Whether it looks at what evaluation would use, which then is made ready before."""

    def read(self, moment: Moment) -> Reading:
        """Measure."""
        ...

    def cost(self, model: nn.Module) -> float:
        """About how many training steps (forward, backward, update) a reading takes."""
        ...


@runtime_checkable
class Watching(Protocol):
    """A probe that reads at the end what it has watched on the way."""

    def watch(self, step: int, model: nn.Module) -> None:
        """Look at a model after update `step`, and change nothing."""
        ...

    def state(self) -> Mapping[str, Tensor]:
        """What it has seen so far, for a snapshot."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what was seen up to a snapshot."""
        ...


@runtime_checkable
class Demanding(Protocol):
    """A probe that not every model suits."""

    def check(self, model: nn.Module) -> None:
        """Raise `Refusal` where a model, which may be on the meta device, is none for it."""
        ...
