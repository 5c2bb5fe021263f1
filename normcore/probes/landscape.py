"""The loss landscape along the gradient (Santurkar et al. 2018, arXiv:1805.11604, section 3.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from normcore.menu.probe import BnMode
from normcore.probes.moment import Moment, Replay
from normcore.probes.probe import Sees
from normcore.records import Reading


@dataclass(frozen=True, kw_only=True, slots=True)
class LandscapeProbe:
    """How smooth the loss is where the next update will go: loss and gradient at points along the negative gradient.

    With g the gradient of the training batch's loss L at theta, and step sizes eta from `low` to `high` times the
    current lr, the probe measures on that same batch, in training mode and with the same noise:

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

    Costs one forward and one backward pass per point, less than a training step, and a copy of the parameters. Under
    bfloat16 small step sizes drown in rounding, and in float32 those of a hundredth of the lr may: `float64` then says
    what is there, at the weights and inputs as they are. With `bn_mode` frozen, or in float64, g is the gradient of
    that function, and the loss is computed as a plain graph, uncompiled.

    Args:
        low: Shortest step size, as a multiple of the lr.
        high: Longest step size, as a multiple of the lr.
        points: Number of step sizes.
        spacing: Whether they are evenly spaced themselves or their logarithms are.
        bn_mode: Statistics that layers with running ones normalize by: those of the batch, as in training, or the
            running ones as they stand.
        precision: What is computed in.

    Example:
        >>> from normcore.probes.look import look
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(model.weight, 3.0)
        >>> def replay():
        ...     return 4.0 * model(torch.ones(1)).square().sum()
        >>> reading = look(LandscapeProbe(low=0.5, high=1.5, points=3), model, replay, lr=0.125)
        >>> reading.arrays["loss"], reading.scalars["effective_beta"]
        ((9.0, 0.0, 9.0), 8.0)
    """

    kind: ClassVar[str] = "landscape"
    sees: ClassVar[Sees] = "step"
    evaluates: ClassVar[bool] = False

    low: float
    high: float
    points: int
    spacing: Literal["linear", "log"] = "linear"
    bn_mode: BnMode = "batch"
    precision: Literal["training", "float64"] = "training"

    def read(self, moment: Moment) -> Reading:
        """Measure at a step, between its backward pass and its update."""
        if self.bn_mode == "batch" and self.precision == "training":
            return self._sweep(moment, moment.replay, list(moment.origin), list(moment.gradient))
        parameters = list(moment.model.parameters())
        with moment.function(bn_mode=self.bn_mode, precision=self.precision) as loss:
            # Of another function the gradient is another.
            learned = [parameter for parameter in parameters if parameter.requires_grad]
            found = iter(torch.autograd.grad(loss(), learned, allow_unused=True))
            gradient = [next(found) if parameter.requires_grad else None for parameter in parameters]
            moment.average([each for each in gradient if each is not None])
            return self._sweep(moment, loss, [parameter.detach().clone() for parameter in parameters], gradient)

    def cost(self, model: nn.Module) -> float:  # noqa: ARG002
        """A step per point, and one for the gradient of another function."""
        return self.points + (self.bn_mode != "batch" or self.precision != "training")

    def step_sizes(self, lr: float) -> list[float]:
        """Where the loss is looked at, as distances along the gradient."""
        low, high, last = self.low, self.high, self.points - 1
        if self.spacing == "log":
            return [lr * low * (high / low) ** (i / last) for i in range(self.points)]
        return [lr * (low + (high - low) * i / last) for i in range(self.points)]

    def _sweep(self, moment: Moment, replay: Replay, origin: list[Tensor], gradients: list[Tensor | None]) -> Reading:
        step_sizes = self.step_sizes(moment.lr)
        parameters = list(moment.model.parameters())
        moving = [each for each in zip(parameters, origin, gradients, strict=True) if each[2] is not None]
        moved, start = [each[0] for each in moving], [each[1] for each in moving]
        gradient = [each[2] for each in moving if each[2] is not None]
        seen = [_visit(moved, start, gradient, step_size, replay, moment) for step_size in step_sizes]
        losses, changes = zip(*seen, strict=True)
        # The norms of all points at once: on a small model each operation counts.
        norms = torch.stack([each for row in (*changes, torch._foreach_norm(gradient)) for each in row])  # noqa: SLF001
        lengths = norms.view(self.points + 1, -1).norm(dim=1)
        # One copy to the host for the whole reading.
        values: list[float] = torch.cat([torch.stack(losses), lengths]).tolist()
        arrays = {
            "step_sizes": tuple(step_sizes),
            "loss": tuple(values[: self.points]),
            "gradient_change": tuple(values[self.points : -1]),
        }
        facts = {"bn_mode": self.bn_mode, "precision": self.precision}
        return Reading(self.kind, moment.step, _scalars(arrays, values[-1], moment.lr), arrays, facts=facts)


def _visit(
    parameters: list[nn.Parameter],
    start: list[Tensor],
    gradient: list[Tensor],
    step_size: float,
    replay: Replay,
    moment: Moment,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Loss, and the L2 norm of each parameter's gradient change, where a step of this size leads."""
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
    loss = loss.detach()
    if replay is not moment.replay:
        moment.average([*change, loss])
    torch._foreach_sub_(change, gradient)
    return loss, torch._foreach_norm(change)  # noqa: SLF001


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
