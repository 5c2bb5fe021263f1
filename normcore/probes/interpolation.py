"""The loss along the straight line between two weights (Goodfellow et al. 2015, arXiv:1412.6544)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import ClassVar

import torch
from torch import Tensor, nn

from normcore.menu.probe import BnMode
from normcore.probes.footprints import no_footprints
from normcore.probes.moment import Moment, Replay
from normcore.probes.probe import Sees
from normcore.probes.surface import FORWARD, losses_at
from normcore.records import Reading
from normcore.statistics.layers import running_statistics
from normcore.weights.spectral import SpectralNorm, spectral_norms

ITERATIONS = 100
"""Of the power method for the spectral norms at each place, from the vectors of the place before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InterpolationProbe:
    """The loss L(alpha) at (1 - alpha) theta_0 + alpha theta_1, theta_1 being the last weights of the training.

    theta_0 are its initial weights, or with `job` the last ones of another job, which `Moment.others` holds: whether
    two trainings end in one valley (linear mode connectivity, Frankle et al. 2020, arXiv:1912.05671). On the batch of
    the last step, in training mode and with that step's noise, all of this training. The arrays are

    - `alpha`, the place on the line: `points` from 0 to 1, and on beyond both ends by `margin`, as far apart;
    - `loss`, L(alpha).

    The scalars:

    - `loss_start` and `loss_end`, L(0) and L(1);
    - `barrier`, the largest L(alpha) - (1 - alpha) L(0) - alpha L(1) over the points between 0 and 1: how high the loss
      stands above the straight line between its ends (Frankle et al. 2020, section 2, of the error). Below 0 on
      a convex loss; two weights are linearly connected where it is about 0;
    - `largest_rise`, the most by which the loss rises anywhere on the way from 0 to 1: 0 where it only falls, as
      Goodfellow et al. saw it do;
    - `distance`, ||theta_1 - theta_0||, the L2 norm over all parameters.

    Where a loss is not finite, `nonfinite_points` counts such points, and what would need it is not given.

    With `bn_mode` batch, layers with running statistics normalize by those of the batch at each place. With frozen, on
    the line from the initial weights, by the running ones of the last weights, which are wrong for all others; on the
    line from another job, by the running ones of both mixed as the weights are: right at both ends, between them
    those of no net (Jordan et al. 2023, arXiv:2211.08403), and beyond them a variance may be mixed to below 0, where
    the loss is not finite. What norms remember of earlier passes (batch_renorm, power) is all along the line what it
    was at the last step. The singular vectors of spectral norm are computed at each place by power iterations.

    Costs a forward pass per point, 0.36 training steps, and the making of a model, or a copy of the other weights.

    Args:
        points: From 0 to 1, both among them.
        margin: How far beyond, as a part of the way.
        bn_mode: Statistics that layers with running ones normalize by.
        job: The name of another job in `Moment.others`, at whose last weights the line begins.

    Example:
        >>> probe = InterpolationProbe(points=3, margin=0.5)
        >>> probe.places()
        [-0.5, 0.0, 0.5, 1.0, 1.5]
        >>> InterpolationProbe(points=3, margin=0).scalars([2.0, 5.0, 4.0])["barrier"]
        2.0
    """

    kind: ClassVar[str] = "interpolation"
    sees: ClassVar[Sees] = "end"
    evaluates: ClassVar[bool] = True

    points: int = 21
    margin: float = 0.25
    bn_mode: BnMode = "batch"
    job: str | None = None

    def read(self, moment: Moment) -> Reading:
        """Measure at the end of a training.

        Raises:
            ValueError: The model is of no job, so that its initial weights are not known; or the last weights of the
                other job are not there, or are of another model.
        """
        if self.job is not None:
            return self._from_another(moment, self.job)
        if moment.anew is None:
            raise ValueError(
                "interpolation begins at the initial weights of a job, got a model of no job; order it as a probe of a "
                "job, or give both weights to normcore.probes.interpolation.interpolate"
            )
        start = [parameter.detach() for parameter in moment.anew().model.parameters()]
        return self.between(moment, start, moment.origin)

    def _from_another(self, moment: Moment, job: str) -> Reading:
        if job not in moment.others:
            raise ValueError(
                f"interpolation begins at the last weights of job {job}, got none: its last checkpoint is on this "
                f"worker's disk and in MLflow no more, or cannot be read; train it again, or name another job (in "
                f"Python, give train its state dict among others)"
            )
        weights, model = moment.others[job], moment.model
        start = _named(model.named_parameters(), weights)
        running = list(_running(model)) if self.bn_mode == "frozen" else []
        statistics = zip((buffer for _, buffer in running), _named(running, weights), strict=True)
        reading = self.between(moment, start, moment.origin, tuple(statistics))
        return replace(reading, facts={**reading.facts, "from": f"last weights of job {job}"})

    def cost(self, model: nn.Module) -> float:  # noqa: ARG002
        """A forward pass for each place on the line."""
        return FORWARD * len(self.places())

    def places(self) -> list[float]:
        """Where on the line the loss is looked at."""
        last, beyond = self.points - 1, int(self.margin * (self.points - 1) + 1e-9)
        return [number / last for number in range(-beyond, last + beyond + 1)]

    def between(
        self,
        moment: Moment,
        start: Sequence[Tensor],
        end: Sequence[Tensor],
        statistics: Sequence[tuple[Tensor, Tensor]] = (),
    ) -> Reading:
        """Measure between two weights, each in the order of `model.parameters()`.

        Args:
            moment: Whose model is moved.
            start: At alpha 0.
            end: At alpha 1.
            statistics: Buffers of the model, as they are at alpha 1, each with its values at alpha 0.
        """
        alphas, spectral = self.places(), spectral_norms(moment.model)

        def along() -> Iterator[list[Tensor]]:
            # Asked for when the statistics are the first device's.
            lasts = [buffer.clone() for buffer, _ in statistics]
            for alpha in alphas:
                for (buffer, first), last in zip(statistics, lasts, strict=True):
                    buffer.copy_(_mixed(first, last, alpha))
                place = [_mixed(first, last, alpha) for first, last in zip(start, end, strict=True)]
                _follow(spectral, moment.model, place)
                yield place

        losses = losses_at(moment, along(), bn_mode=self.bn_mode)
        ways = [(last.double() - first.double()).square().sum() for first, last in zip(start, end, strict=True)]
        scalars = self.scalars(losses) | {"distance": torch.stack(ways).sum().sqrt().item()}
        arrays = {"alpha": tuple(alphas), "loss": tuple(losses)}
        return Reading(self.kind, moment.step, scalars, arrays, facts={"bn_mode": self.bn_mode})

    def scalars(self, losses: Sequence[float]) -> dict[str, float]:
        """What the losses at all places say."""
        alphas = self.places()
        way = [(alpha, loss) for alpha, loss in zip(alphas, losses, strict=True) if 0 <= alpha <= 1]
        (_, first), (_, last) = way[0], way[-1]
        scalars = {"loss_start": first, "loss_end": last}
        scalars["barrier"] = max(loss - (1 - alpha) * first - alpha * last for alpha, loss in way[1:-1])
        lowest = [min(loss for _, loss in way[: number + 1]) for number in range(len(way))]
        scalars["largest_rise"] = max(loss - low for (_, loss), low in zip(way, lowest, strict=True))
        if blown := sum(not isfinite(loss) for loss in losses):
            scalars["nonfinite_points"] = float(blown)
        if not all(isfinite(loss) for _, loss in way):
            del scalars["barrier"], scalars["largest_rise"]
        return {name: value for name, value in scalars.items() if isfinite(value)}


def interpolate(
    model: nn.Module,
    loss: Replay,
    start: Mapping[str, Tensor],
    end: Mapping[str, Tensor],
    *,
    points: int = 21,
    margin: float = 0.25,
) -> Reading:
    """The line between any two weights of a model, such as the last ones of two jobs; the model is left as it was.

    Args:
        model: In the mode in which its loss is wanted.
        loss: Computes the loss by running the model, each time on the same batch.
        start: At alpha 0, by the names of the parameters; other names, as of buffers in a state dict, do not count.
        end: At alpha 1, likewise.
        points: As of the probe.
        margin: As of the probe.

    Raises:
        ValueError: Weights are of another model.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> start, end = {"weight": torch.tensor([[-1.0]])}, {"weight": torch.tensor([[1.0]])}
        >>> reading = interpolate(model, lambda: (1 - model.weight**2).square().sum(), start, end, points=3, margin=0)
        >>> reading.arrays["loss"], reading.scalars["barrier"]
        ((0.0, 1.0, 0.0), 1.0)
    """
    probe = InterpolationProbe(points=points, margin=margin)
    first, last = (_named(model.named_parameters(), weights) for weights in (start, end))

    def plain(ahead: int = 0, dtype: torch.dtype | None = None, noise_ahead: int = 0) -> Replay:  # noqa: ARG001
        return loss

    with no_footprints(model) as origin:
        return probe.between(Moment(0, 0.0, model, loss, plain, tuple(origin)), first, last)


def _mixed(first: Tensor, last: Tensor, alpha: float) -> Tensor:
    """At both ends these themselves, and not what rounding makes of them."""
    return first * (1 - alpha) + last * alpha


def _follow(spectral: Iterable[tuple[SpectralNorm, Tensor]], model: nn.Module, place: Sequence[Tensor]) -> None:
    """Turn the singular vectors of spectral norms to those of other weights."""
    numbers = {id(parameter): number for number, parameter in enumerate(model.parameters())}
    for method, weight in spectral:
        for _ in range(ITERATIONS):
            method.advance(place[numbers[id(weight)]], unless=weight.new_zeros(()))


def _running(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The running statistics of a model's layers, by their names in its state dict."""
    for path, module in model.named_modules():
        for name, buffer in running_statistics(module).items():
            if buffer.is_floating_point():
                yield f"{path}.{name}".lstrip("."), buffer


def _named(own: Iterable[tuple[str, Tensor]], weights: Mapping[str, Tensor]) -> list[Tensor]:
    """Those weights that have the names of a model's own tensors, in their order."""
    found: list[Tensor] = []
    for name, tensor in own:
        theirs = tuple(weights[name].shape) if name in weights else None
        if theirs != tuple(tensor.shape):
            raise ValueError(
                f"weights must be of the model that they are mixed in, got {name} of shape {tuple(tensor.shape)} in "
                f"the model and {theirs} in the weights; take two trainings of the same model"
            )
        found.append(weights[name].to(tensor))
    return found
