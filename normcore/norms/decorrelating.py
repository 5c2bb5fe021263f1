"""What norms share that decorrelate groups of channels: everything but how a covariance becomes a whitening matrix."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from normcore.norms.channel_groups import (
    check_enough_values,
    covariance,
    divide_channels,
    from_groups,
    to_groups,
    without_autocast,
)
from normcore.norms.claims import Claims
from normcore.norms.decorrelation import Decorrelation, batch_statistics, decorrelated, turned
from normcore.norms.gathering import Moments
from normcore.norms.norm import Norm, at_least_float32, check_channels, scale_and_shift


class Decorrelating(Norm):
    """The channels of a group, less their means, times a matrix W that the group's covariance gives.

        y = gamma W (x - mean) + beta,            W = W(cov(x) + eps I)

    The covariance is biased, over batch and pixels. Groups have one each, other than in the code of the papers,
    where all groups share one. In training mean and W are the batch's, and `running_mean` and `running_whitening` move
    towards them: `running = (1 - momentum) running + momentum new` (an average of W, as in that code, not of the
    covariance). In evaluation they are the running ones. Gamma and beta are one each per channel.

    Attributes:
        channels_per_group: D, the channels of a group.
        running_mean: `(C,)`.
        running_whitening: `(G, D, D)`, the identity before the first batch.
    """

    claims = Claims(statistics="batch", shift_invariant="channel")

    running_mean: Tensor
    running_whitening: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        channels_per_group: int,
        divisibility: str,
        eps: float,
        momentum: float,
        affine: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.num_features, self.eps, self.momentum, self.affine = num_features, eps, momentum, affine
        self.channels_per_group = divide_channels(num_features, channels_per_group, divisibility)
        self.weight, self.bias = scale_and_shift(num_features, affine=affine, device=device, dtype=dtype)
        kept = at_least_float32(dtype or torch.get_default_dtype())
        groups = num_features // self.channels_per_group
        identities = torch.eye(self.channels_per_group, device=device, dtype=kept).repeat(groups, 1, 1)
        self.register_buffer("running_mean", torch.zeros(num_features, device=device, dtype=kept))
        self.register_buffer("running_whitening", identities)

    @abstractmethod
    def whitening(self, covariance: Tensor, orders: int = 2) -> Tensor:
        """W of each group, `(G, D, D)`, from its covariance, to which it adds eps on the diagonal.

        At least so many orders of derivatives are exact.
        """

    def forward(self, x: Tensor) -> Tensor:
        """The normalized input, `(N, C, *)`.

        Raises:
            Refusal: In training, no more values of a channel than a group has channels; or C is not `num_features`.
        """
        check_channels(x, self.num_features)
        if not self.training:
            return self._by_running_statistics(x)
        check_enough_values(x, self.channels_per_group)
        if torch.compiler.is_compiling():
            y, statistics = decorrelated(x, self.weight, self.bias, self.channels_per_group, self.whitening)
        else:
            statistics = batch_statistics(x.detach(), self.channels_per_group, self.whitening)
            y = Decorrelation.of(x, self.weight, self.bias, *statistics, self.whitening)
        mean, of_groups, whitening = (statistic.detach() for statistic in statistics)
        self.running_mean.lerp_(mean.flatten().to(self.running_mean.dtype), self.momentum)
        self.running_whitening.lerp_(whitening.to(self.running_whitening.dtype), self.momentum)
        self.watch(of_groups, whitening)
        return y

    def watch(self, covariance: Tensor, whitening: Tensor) -> None:
        """What a training pass has found, before it goes."""

    def reset_statistics(self) -> None:
        """Put the running mean back to 0 and the running matrices to the identity."""
        with torch.no_grad():
            self.running_mean.zero_()
            self.running_whitening.copy_(torch.eye(self.channels_per_group))

    def moments(self, x: Tensor, mask: Tensor | None = None) -> Moments:
        """`mean`, the means of the channels `(C,)`, and `square`, those of their products in a group `(G, D, D)`.

        See `normcore.norms.gathering.Gathers`. With a mask, `(N, *)`, they are those of the real tokens.
        """
        # One part, (C, values): what is masked can be left out of it.
        values = x.detach().to(at_least_float32(x.dtype)).transpose(0, 1).flatten(1)
        if mask is not None:
            values = values[:, mask.flatten()]
        groups = values.view(1, -1, self.channels_per_group, values.shape[1])
        count = torch.full((), values.shape[1], dtype=torch.float64, device=x.device)
        with without_autocast(x):
            mean = groups.mean(-1, keepdim=True)
            square = covariance(groups - mean).double() + (mean.double() @ mean.double().mT)[0]
        return Moments(count, {"mean": mean.flatten().double(), "square": square})

    def statistics(self, moments: Moments, *, unbiased: bool) -> dict[str, Tensor]:
        """See `normcore.norms.gathering.Gathers`: the whitening matrices are those of the pooled covariance."""
        mean = moments.means["mean"]
        column = mean.view(-1, self.channels_per_group, 1)
        of_groups = moments.means["square"] - column @ column.mT
        if unbiased:
            of_groups = of_groups * moments.count / (moments.count - 1).clamp(min=1)
        return {"running_mean": mean, "running_whitening": self.whitening(of_groups, 0)}

    def _by_running_statistics(self, x: Tensor) -> Tensor:
        with without_autocast(x):
            values = x.to(at_least_float32(x.dtype))
            groups = to_groups(values, self.channels_per_group)
            centred = groups - self.running_mean.to(groups.dtype).view(*groups.shape[1:3], 1)
            y = turned(centred, self.running_whitening.to(groups.dtype), self.weight, self.bias)
            return from_groups(y, values).to(x.dtype)
