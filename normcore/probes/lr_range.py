"""The range of usable learning rates (Smith 2017, arXiv:1506.01186, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isfinite, log10
from statistics import median
from typing import ClassVar

import torch
from torch import Tensor, nn

from normcore.probes.moment import Moment
from normcore.probes.probe import Sees
from normcore.records import Reading

WINDOW = 5
"""Losses that a smoothed one is the median of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LrRangeProbe:
    """Which learning rates a job could be trained with: its training is begun anew while the lr grows.

    From the job's initial weights, with its optimizer, batches and noise, `steps` updates are made, with lr_k from
    `low` to `high` times the job's lr at equal ratios. With L_0 the loss at the initial weights, the arrays are

    - `lr`, lr_k, the lr of update k;
    - `loss`, L_k, the loss after that update, of the next batch; not finite from where the sweep diverged;
    - `smoothed`, the median of the 5 losses around each, of fewer towards the ends. It does not lag behind as a moving
      average would, and leaves a loss that only falls or only rises as it is.

    The scalars, with S the smoothed loss, min S its smallest value and f the `fraction`:

    - `loss_initial`, L_0;
    - `lr_usable_min`, the first lr at which S <= (1 - f) L_0: the loss has fallen;
    - `lr_usable_max`, the last lr before S > min S + f L_0 or a loss is not finite, after the minimum; where neither
      happens it is the last lr of the sweep, and `open_end` is 1: the edge lies further up;
    - `lr_usable_decades`, log10 of their ratio: the width of the usable range, and 0 where the loss never fell so far;
    - `lr_steepest`, the lr before the minimum at which S falls most, from two updates earlier to two later.

    A sweep that diverges is a reading like any other. The edges are no constants of the loss alone. The lower one falls
    with more steps, which have more time to move. The upper one is where harm shows: on a quadratic with largest
    curvature lambda, plain gradient descent shrinks the error below an lr of 2 / lambda and grows it above, but what
    has shrunk must first grow again, so that without noise of batches the edge is found at up to 12.6 / lambda. So
    compare arms by sweeps of the same knobs.

    Costs `steps` training steps and the making of a model, and the memory of a second training's weights, gradients
    and optimizer, which is given back. The training that is done is left as it is.

    Args:
        low: First lr, as a multiple of the job's.
        high: Last lr, as a multiple of the job's.
        steps: Updates.
        fraction: Part of the initial loss that counts as a fall and as a rise.

    Example:
        >>> probe = LrRangeProbe(low=0.1, high=10.0, steps=3)
        >>> [round(lr, 3) for lr in probe.rates(0.5)]
        [0.05, 0.5, 5.0]
        >>> probe.edges([1.0, 2.0, 4.0, 8.0], [3.0, 2.0, 1.5, 1.2, float("inf")])["lr_usable_max"]
        4.0
    """

    kind: ClassVar[str] = "lr_range"
    sees: ClassVar[Sees] = "end"
    evaluates: ClassVar[bool] = False

    low: float = 1e-3
    high: float = 1e3
    steps: int = 100
    fraction: float = 0.1

    def read(self, moment: Moment) -> Reading:
        """Measure at the end of a training.

        Raises:
            ValueError: The model is of no job, so that there is nothing to begin anew.
        """
        if moment.anew is None:
            raise ValueError("lr_range begins a job anew, got a model of no job; order it as a probe of a job")
        learner = moment.anew()
        # As it was built: the schedule of the training that is done may have ended at zero.
        rates = self.rates(learner.optimizer.param_groups[0]["lr"])
        losses: list[Tensor] = []
        for step, lr in enumerate(rates, start=1):
            loss, _, _ = learner.forward(step)
            learner.backward(loss)
            learner.update(loss, lr)
            losses.append(loss.detach())
        with torch.no_grad():
            losses.append(learner.forward(self.steps + 1)[0])
        # One copy to the host for the whole sweep: no step waits for the device.
        values: list[float] = torch.stack(losses).tolist()
        smoothed = tuple(running_median(values, WINDOW)[1:])
        arrays = {"lr": tuple(rates), "loss": tuple(values[1:]), "smoothed": smoothed}
        facts = {"fraction": f"{self.fraction:g}", "line": f"median of {WINDOW} losses"}
        return Reading(self.kind, moment.step, self.edges(rates, values), arrays, facts=facts)

    def cost(self, model: nn.Module) -> float:  # noqa: ARG002
        """The steps of the sweep."""
        return float(self.steps)

    def rates(self, lr: float) -> list[float]:
        """The learning rates of the sweep of a job with this lr."""
        return [lr * self.low * (self.high / self.low) ** (k / (self.steps - 1)) for k in range(self.steps)]

    def edges(self, rates: Sequence[float], losses: Sequence[float]) -> dict[str, float]:
        """The scalars of a sweep, from its learning rates and its losses, of which the first is the initial one."""
        smoothed, initial = running_median(losses, WINDOW), losses[0]
        if not isfinite(initial):
            return {}
        scalars = {"loss_initial": initial}
        fallen = [k for k, value in enumerate(smoothed) if value <= (1 - self.fraction) * initial]
        if not fallen:
            return scalars | {"lr_usable_decades": 0.0}
        lowest = smoothed.index(min(smoothed))
        ceiling = smoothed[lowest] + self.fraction * initial
        risen = [k for k in range(lowest + 1, len(losses)) if smoothed[k] > ceiling or not isfinite(losses[k])]
        # Loss k is the one after update k, whose lr stands at k - 1; the initial one has none.
        first, last = max(0, fallen[0] - 1), (risen[0] - 1 if risen else len(losses) - 1) - 1
        usable = (rates[first], rates[max(first, last)])
        scalars |= {"lr_usable_min": usable[0], "lr_usable_max": usable[1]}
        scalars |= {
            "lr_usable_decades": log10(usable[1] / usable[0]),
            "lr_steepest": rates[_steepest(smoothed[: lowest + 1]) - 1],
        }
        return scalars if risen else scalars | {"open_end": 1.0}


def running_median(values: Sequence[float], window: int) -> list[float]:
    """The median of as many values around each, of fewer towards the ends, always as many before as after.

    A value that is not finite counts as infinite.

    Example:
        >>> running_median([3.0, 9.0, 2.0, 1.0, float("nan")], 3)
        [3.0, 3.0, 2.0, 2.0, inf]
    """
    counted, last = [value if isfinite(value) else inf for value in values], len(values) - 1
    reaches = [min(window // 2, k, last - k) for k in range(len(values))]
    return [median(counted[k - reach : k + reach + 1]) for k, reach in enumerate(reaches)]


def _steepest(smoothed: Sequence[float]) -> int:
    """The number of the update around which the smoothed loss falls most, from two before it to two after."""
    half = WINDOW // 2
    falls = [(smoothed[k + half] - smoothed[k - half], k) for k in range(half, len(smoothed) - half)]
    return min(falls)[1] if falls else 1
