"""How the inputs of non-linearities are distributed, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import ClassVar

import torch
from torch import Tensor, nn

from normcore.probes.moment import Moment
from normcore.probes.places import watched
from normcore.probes.probe import Sees
from normcore.probes.tally import STATISTICS
from normcore.records import Reading


@dataclass(frozen=True, kw_only=True, slots=True)
class ActivationsProbe:
    """What each non-linearity is given, and what it makes of it, on the training batch.

    The values x of a layer are those that go into its non-linearity, behind norm and noise, of all samples, channels
    and pixels together; padded tokens do not count. The arrays hold a value per layer:

    - `mean`, E x; `var`, E (x - mean)^2; `skew`, E (x - mean)^3 / var^(3/2);
    - `p15`, `p50` and `p85`: percentiles of x (Ioffe & Szegedy 2015, figure 1);
    - `dead`: share of channels in which a rectifier gives nothing but zeros, for all samples and pixels;
    - `saturated`: share of values at which the slope of the non-linearity is less than 5 % of its largest. Of a relu
      these are its zeros, of a sigmoid |x| > 4.36, of a tanh |x| > 2.18: what passes the gradient on no more;
    - `effective_rank`: exp(-sum_i p_i log p_i) where p_i are the eigenvalues of the channels' covariance over their
      sum (Roy & Vetterli 2007): between 1 and the number of channels, at most one less than there are rows;
    - `correlation`: mean |correlation| of two channels, which whitening brings to zero. In n independent rows chance
      leaves about sqrt(2 / (pi n));
    - `channels`: how many of them the last two are taken of, the first 256 at most. A row is a pixel of a sample.

    NaN stands where there is no such thing: `dead` but for relus and thresholded linear units, `skew` and
    `effective_rank` of a constant, and a layer that is not reached. The scalars are the largest |mean|, the `var` of
    the last layer over that of the first (`var_ratio`), the largest `dead`, `saturated` and `correlation`, and
    `rank_share_min`, the smallest effective rank over the number of channels.

    Layers are those of `normcore.probes.places.watched`: modules that are non-linearities; norms that hold their own,
    by what they give, without a slope; gates and cell of an LSTM, over all time steps; and in a model without any, its
    linear maps and convolutions by what they give. Of a module that runs several times, as in micro-batches, all values
    count. Non-linearities that are called as functions are not seen.

    Moments are exact, in float64. Percentiles and covariances are exact up to about 32,000 values and 4,000 rows, and
    else those of an evenly spaced sample. On several devices percentiles are the means of the devices', all else that
    of the whole batch. Costs a forward pass and some passes over the activations: on a CPU 0.8 to 1.4 training steps of
    a VGG, ResNet or transformer; of an LSTM or an MLP whose steps take some milliseconds, 2 to 4.

    Example:
        >>> from normcore.probes.look import look
        >>> model = nn.Sequential(nn.Linear(1, 2), nn.ReLU())
        >>> _ = nn.init.zeros_(model[0].weight), model[0].bias.data.copy_(torch.tensor([-2.0, 3.0]))
        >>> reading = look(ActivationsProbe(), model, lambda: model(torch.ones(4, 1)).sum(), lr=0.1)
        >>> reading.layers, reading.arrays["mean"], reading.arrays["dead"], reading.arrays["saturated"]
        (('1',), (0.5,), (0.5,), (0.5,))
    """

    kind: ClassVar[str] = "activations"
    sees: ClassVar[Sees] = "step"
    evaluates: ClassVar[bool] = False

    @torch.no_grad()
    def read(self, moment: Moment) -> Reading:
        """Measure at a step, between its backward pass and its update."""
        replay = moment.plain()
        with watched(moment.model) as seen:
            replay()

        def average(tensors: Sequence[Tensor]) -> None:
            moment.average(tensors)

        found: dict[str, list[float]] = {name: [] for name in (*STATISTICS, "dead")}
        for place in seen.places.values():
            if moment.ranks.count > 1:
                place.tally.share(average)
            for name, value in (place.tally.statistics() | {"dead": place.dead(average)}).items():
                found[name].append(value)
        arrays = {name: tuple(values) for name, values in found.items()}
        facts = {"percentiles": "means of the devices'"} if moment.ranks.count > 1 else {}
        return Reading(self.kind, moment.step, _scalars(arrays), arrays, tuple(seen.places), facts)

    def cost(self, model: nn.Module) -> float:  # noqa: ARG002
        """A forward pass, and passes over the activations."""
        return 1.3


def _scalars(arrays: Mapping[str, tuple[float, ...]]) -> dict[str, float]:
    finite = {name: [value for value in values if isfinite(value)] for name, values in arrays.items()}
    scalars = {f"{name}_max": max(finite[name]) for name in ("dead", "saturated", "correlation") if finite[name]}
    if finite["mean"]:
        scalars["mean_abs_max"] = max(map(abs, finite["mean"]))
    if finite["var"] and finite["var"][0] > 0:
        scalars["var_ratio"] = finite["var"][-1] / finite["var"][0]
    ranks = zip(arrays["effective_rank"], arrays["channels"], strict=True)
    if shares := [rank / channels for rank, channels in ranks if isfinite(rank)]:
        scalars["rank_share_min"] = min(shares)
    return {name: value for name, value in scalars.items() if isfinite(value)}
