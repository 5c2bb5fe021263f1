"""The weights that a training passed through."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

CHUNK = 1 << 20
"""Numbers of a vector of weights that are looked at together, in float64."""


class KeptWeights:
    """Vectors of weights by their step, on the CPU, at most so many.

    When there is no more room every second is dropped, and from then on every second is kept, so that they stay evenly
    spread over the training.

    A vector holds all parameters one after the other, in the order of `model.parameters()` and in their dtype.

    Args:
        room: How many vectors are kept at most.

    Example:
        >>> kept = KeptWeights(4)
        >>> for step in range(1, 11):
        ...     kept.offer(step, [torch.full((1,), float(step))])
        >>> kept.steps
        [1, 5, 9]
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self._offered, self._stride = 0, 1
        self.steps: list[int] = []
        self.vectors: list[Tensor] = []

    def offer(self, step: int, parameters: Iterable[Tensor]) -> None:
        """Keep a copy of the weights after update `step`, or not."""
        number = self._offered
        self._offered += 1
        if len(self.steps) == self._room and number % self._stride == 0:
            self.steps, self.vectors, self._stride = self.steps[::2], self.vectors[::2], 2 * self._stride
        if number % self._stride == 0:
            self.steps.append(step)
            self.vectors.append(vector(parameters))

    def state(self) -> dict[str, Tensor]:
        """Everything, as tensors: `place` (offered, stride, then the steps) and a vector per step."""
        if not self._offered:
            return {}
        place = torch.tensor([self._offered, self._stride, *self.steps])
        return {"place": place} | {f"weights.{step}": kept for step, kept in zip(self.steps, self.vectors, strict=True)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state."""
        if state:
            self._offered, self._stride, *self.steps = state["place"].tolist()
            self.vectors = [state[f"weights.{step}"].clone() for step in self.steps]


def vector(parameters: Iterable[Tensor]) -> Tensor:
    """Parameters as one vector on the CPU; of several dtypes in one that holds them all."""
    return torch.cat([parameter.detach().flatten().cpu() for parameter in parameters])


def chunks(vectors: Iterable[Tensor], end: Tensor) -> Iterator[Tensor]:
    """The differences of vectors `(P,)` from `end`, `(rows, <= CHUNK)` in float64, one stretch after the other."""
    rows = list(vectors)
    for start in range(0, len(end), CHUNK):
        part = slice(start, start + CHUNK)
        yield torch.stack([row[part].double() for row in rows]) - end[part].double()
