"""The loss landscape along the gradient (Santurkar et al. 2018, arXiv:1805.11604, section 3.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import ClassVar

import torch
from torch import Tensor, nn

from normcore.probes.footprints import no_footprints
from normcore.probes.landscape_figure import draw
from normcore.probes.probe import Replay
from normcore.records import Reading


@dataclass(frozen=True, kw_only=True, slots=True)
class LandscapeProbe:
    """How smooth the loss is where the next update will go: loss and gradient at points along the negative gradient.

    With g the gradient of the training batch's loss L at theta, and step sizes eta evenly spaced from `low` to `high`
    times the current lr, the probe measures on that same batch, in training mode and with the same noise:

    - `loss`, L(theta - eta g); its smallest and largest value bound the *loss variation*;
    - `gradient_change`, ||grad L(theta - eta g) - g||_2, in which a small value is a predictive gradient;
    - `effective_beta`, the largest gradient_change / (eta ||g||): the smoothness constant that the update meets;
    - `effective_beta_times_lr`, which does not depend on the unit of the lr: plain gradient descent on a quadratic is
      stable up to 2, and training settles near that edge (Cohen et al. 2021, arXiv:2103.00065), whatever the lr.

    On a quadratic whose gradient is an eigenvector, effective_beta is that eigenvalue. Under plain SGD theta - lr g is
    where the update lands; under momentum or Adam it is not, and the direction is still the gradient's.

    A point whose loss or gradient is not finite is left out of the scalars, and `nonfinite_points` counts such points
    where there are any; a scalar that has no finite value is not given, nor any at an lr of zero. The arrays keep
    every point.

    Costs one forward and one backward pass per point, less than a training step, and a copy of the parameters. Losses
    and gradients have the precision of the training: under bfloat16 small step sizes drown in rounding.

    Args:
        every: Steps between two readings.
        low: Shortest step size, as a multiple of the lr.
        high: Longest step size, as a multiple of the lr.
        points: Number of step sizes.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(model.weight, 3.0)
        >>> def replay():
        ...     return 4.0 * model(torch.ones(1)).square().sum()
        >>> replay().backward()
        >>> reading = LandscapeProbe(every=1, low=0.5, high=1.5, points=3).read(1, model, replay, lr=0.125)
        >>> reading.arrays["loss"], reading.scalars["effective_beta"]
        ((9.0, 0.0, 9.0), 8.0)
    """

    kind: ClassVar[str] = "landscape"
    evaluates: ClassVar[bool] = False

    every: int
    low: float
    high: float
    points: int

    def read(self, step: int, model: nn.Module, replay: Replay, lr: float) -> Reading:
        """Measure at a step, between its backward pass and its update."""
        multiples = [self.low + (self.high - self.low) * i / (self.points - 1) for i in range(self.points)]
        step_sizes = [multiple * lr for multiple in multiples]
        moving = [parameter.grad is not None for parameter in model.parameters()]
        parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
        gradient = [parameter.grad for parameter in parameters if parameter.grad is not None]
        with no_footprints(model) as saved:
            start = [tensor for tensor, moves in zip(saved, moving, strict=True) if moves]
            seen = [_visit(parameters, start, gradient, step_size, replay) for step_size in step_sizes]
        losses, changes = zip(*seen, strict=True)
        # One copy to the host for the whole reading.
        values: list[float] = torch.stack([*losses, *changes, _norm(gradient)]).tolist()
        arrays = {
            "step_sizes": tuple(step_sizes),
            "loss": tuple(values[: self.points]),
            "gradient_change": tuple(values[self.points : -1]),
        }
        return Reading(self.kind, step, _scalars(arrays, values[-1], lr), arrays)

    def figure(self, readings: Sequence[Reading]) -> bytes:
        """The bands of loss and gradient change, and effective beta times lr with its line at 2, over the steps."""
        return draw(readings)


def _visit(
    parameters: list[nn.Parameter], start: list[Tensor], gradient: list[Tensor], step_size: float, replay: Replay
) -> tuple[Tensor, Tensor]:
    """Loss and gradient change where a step of this size leads."""
    with torch.no_grad():
        for parameter, origin, direction in zip(parameters, start, gradient, strict=True):
            torch.sub(origin, direction, alpha=step_size, out=parameter)
    loss = replay()
    # Not sooner: the new gradients then take the memory of the last point's, still in the caches.
    for parameter in parameters:
        parameter.grad = None
    loss.backward()  # type: ignore[no-untyped-call]
    # A parameter's gradient after a backward pass is no one else's, so it may be changed in place.
    change = [parameter.grad for parameter in parameters if parameter.grad is not None]
    torch._foreach_sub_(change, gradient)
    return loss.detach(), _norm(change)


def _norm(tensors: list[Tensor]) -> Tensor:
    """The L2 norm of all values together."""
    return torch.stack(torch._foreach_norm(tensors)).norm()  # type: ignore[no-any-return]  # noqa: SLF001


def _scalars(arrays: Mapping[str, tuple[float, ...]], norm: float, lr: float) -> dict[str, float]:
    if lr == 0:
        # Nothing moved, as at the end of a cosine: bands of no width would say that the loss is perfectly smooth.
        return {}
    finite = [point for point in zip(*arrays.values(), strict=True) if all(isfinite(value) for value in point)]
    scalars: dict[str, float] = {}
    if finite:
        _, losses, changes = zip(*finite, strict=True)
        scalars = {
            "loss_min": min(losses),
            "loss_max": max(losses),
            "gradient_change_min": min(changes),
            "gradient_change_max": max(changes),
        }
    # Where the gradient is zero nothing moves, and there is no smoothness to speak of.
    betas = [change / (step_size * norm) for step_size, _, change in finite if step_size * norm > 0]
    if betas:
        scalars |= {"effective_beta": max(betas), "effective_beta_times_lr": max(betas) * lr}
    if len(finite) < len(arrays["step_sizes"]):
        scalars["nonfinite_points"] = float(len(arrays["step_sizes"]) - len(finite))
    return scalars
