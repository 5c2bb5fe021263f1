"""A picture of the loss over two directions (Li et al. 2018, arXiv:1712.09913)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isfinite, nan
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from normcore.menu.probe import BnMode
from normcore.probes.directions import coordinates, filter_normalized, principal
from normcore.probes.kept_weights import KeptWeights, vector
from normcore.probes.moment import Moment
from normcore.probes.probe import Sees
from normcore.probes.surface import FORWARD, losses_at
from normcore.records import Reading

MARGIN = 0.2
"""Of the path's extent, how much is left around it at a reach of 1."""


class PlaneProbe:
    """The loss at a grid of weights around the last ones, theta, and the path by which the training came there.

    At theta + x d_x + y d_y, the loss of the last training batch is computed, with that step's noise. The directions
    are either

    - `random`: drawn, and filter-normalized, see `normcore.probes.directions.filter_normalized`: biases and norms do
      not move. x and y are in norms of the filters: at x = 1 each filter has moved by its own length. The grid goes
      from -reach to reach. A path is hardly seen in it: random directions are at right angles to nearly everything.
    - `trajectory`: the two that hold most of the path, see `normcore.probes.directions.principal`. x and y are L2
      distances of all weights together. The grid holds the path with a fifth of its extent around it, times reach.

    The arrays:

    - `x`, `y`: the grid's coordinates, `points` each;
    - `loss`: points^2 losses, row by row: number i * points + j is that at (x_j, y_i);
    - `path_x`, `path_y`, `path_step`: where the weights that were kept stand, projected onto the plane, by step, and
      NaN up to a length of `keep`. The last weights are at (0, 0), and not among them.

    The scalars: `loss_min` and `loss_max` of the finite losses of the grid; `loss_end`, at theta; `explained`, the part
    of the sum of the squared distances of the kept weights from theta that lies in the plane, and `explained_x` that
    along d_x alone. A path that lies in a plane is explained to 1.

    Costs points^2 + 1 forward passes, 0.36 training steps each. While the training runs, the kept weights take `keep`
    copies of the parameters in the memory of the host, and in every snapshot. At the end there are six copies on the
    device, and two in float64 on the host.

    Args:
        directions: Which.
        points: Grid points along each side.
        reach: How far the grid goes.
        keep: Weights that are kept at most; when there are more, every second is dropped.
        bn_mode: Statistics that layers with running ones normalize by: those of the batch at each grid point, or the
            running ones as they stand.

    Example:
        >>> from normcore.probes.look import look
        >>> model = nn.Linear(2, 1, bias=False)
        >>> reading = look(PlaneProbe(points=3), model, lambda: model.weight.square().sum(), lr=0.1)
        >>> len(reading.arrays["loss"]), reading.arrays["loss"][4] == reading.scalars["loss_end"]
        (9, True)
    """

    kind: ClassVar[str] = "plane"
    sees: ClassVar[Sees] = "end"
    evaluates: ClassVar[bool] = False

    def __init__(
        self,
        *,
        directions: Literal["random", "trajectory"] = "random",
        points: int = 11,
        reach: float = 1.0,
        keep: int = 20,
        bn_mode: BnMode = "batch",
    ) -> None:
        self.directions, self.points, self.reach, self.keep, self.bn_mode = directions, points, reach, keep, bn_mode
        self._kept = KeptWeights(keep)

    def watch(self, step: int, model: nn.Module) -> None:
        """Keep the weights."""
        self._kept.offer(step, model.parameters())

    def state(self) -> Mapping[str, Tensor]:
        """The weights kept so far."""
        return self._kept.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from the weights kept up to a snapshot."""
        self._kept.restore(state)

    def read(self, moment: Moment) -> Reading:
        """Measure at the end of a training.

        Raises:
            ValueError: The path is to give the directions, and has none.
        """
        end = vector(moment.origin)
        before = [number for number, step in enumerate(self._kept.steps) if step != moment.step]
        path = [self._kept.vectors[number] for number in before]
        if self.directions == "trajectory":
            x, y = principal(path, end)
        else:
            x, y = (filter_normalized(moment.model, moment.generator("plane", axis)) for axis in ("x", "y"))
        place, along_x, in_plane = coordinates(path, end, x, y)
        xs, ys = (self._grid(place[:, axis].tolist()) for axis in (0, 1))
        origin, right, up = list(moment.origin), _like(x, moment.origin), _like(y, moment.origin)

        def places() -> Iterator[list[Tensor]]:
            yield origin
            for down in ys:
                row = torch._foreach_add(origin, up, alpha=down)  # noqa: SLF001
                for along in xs:
                    yield list(torch._foreach_add(row, right, alpha=along))  # noqa: SLF001

        at_end, *losses = losses_at(moment, places(), bn_mode=self.bn_mode)
        gaps = [nan] * (self.keep - len(path))
        arrays = {
            "x": tuple(xs),
            "y": tuple(ys),
            "loss": tuple(losses),
            "path_x": (*place[:, 0].tolist(), *gaps),
            "path_y": (*place[:, 1].tolist(), *gaps),
            "path_step": (*(float(self._kept.steps[number]) for number in before), *gaps),
        }
        finite = [loss for loss in losses if isfinite(loss)]
        scalars = {"loss_end": at_end, "explained": in_plane.item(), "explained_x": along_x.item()}
        scalars |= {"loss_min": min(finite), "loss_max": max(finite)} if finite else {}
        scalars = {name: value for name, value in scalars.items() if isfinite(value)}
        facts = {"bn_mode": self.bn_mode, "directions": self.directions}
        return Reading(self.kind, moment.step, scalars, arrays, facts=facts)

    def cost(self, model: nn.Module) -> float:  # noqa: ARG002
        """A forward pass for each place of the grid, and one at the end."""
        return FORWARD * (self.points**2 + 1)

    def _grid(self, path: list[float]) -> list[float]:
        """Coordinates along a side."""
        centre, half = 0.0, self.reach
        if self.directions == "trajectory":
            low, high = min(0.0, *path), max(0.0, *path)
            centre, half = (low + high) / 2, self.reach * (1 + 2 * MARGIN) * (high - low) / 2
        last = self.points - 1
        return [centre + half * (2 * number - last) / last for number in range(self.points)]


def _like(direction: Tensor, parameters: tuple[Tensor, ...]) -> list[Tensor]:
    """A direction `(P,)` as tensors like the parameters."""
    pieces = torch.split(direction, [parameter.numel() for parameter in parameters])
    return [
        torch.empty_like(parameter).copy_(piece.view(parameter.shape))
        for piece, parameter in zip(pieces, parameters, strict=True)
    ]
