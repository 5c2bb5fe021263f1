"""What every probe promises."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor, nn

from normcore.records import Reading

Replay = Callable[[], Tensor]
"""Computes the training loss of this step once more: the same batch, mode, precision and noise."""


class Probe(Protocol):
    """Something that is measured while a model trains, and leaves no footprints: the training goes on as if unseen."""

    kind: str
    """The name its curves stand under."""
    every: int
    """Steps between two readings."""
    evaluates: bool
    """Whether it looks at what evaluation would use, which then is made ready before."""

    def read(self, step: int, model: nn.Module, replay: Replay, lr: float) -> Reading:
        """Measure the update that makes `step` updates, after its backward pass and before the update.

        The parameters' `.grad` hold the gradient of the training loss; `lr` is what the update will use.
        """
        ...

    def figure(self, readings: Sequence[Reading]) -> bytes:
        """Draw all readings of a training, as PNG."""
        ...
