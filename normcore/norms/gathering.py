"""How a norm lets its running statistics be computed anew, from any batches and by any estimator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from normcore.norms.masked import masked_mean_var
from normcore.norms.norm import at_least_float32, pixels_of


@dataclass(frozen=True, slots=True)
class Moments:
    """What a batch has to say about running statistics: means over its values, in float64, and their number.

    Means over values pool without loss: the mean over two batches together is that of their means, each weighed by its
    count. Variances do not (they miss the variance between the batches), so a norm gives E[x^2] and not E[(x - m)^2].
    """

    count: Tensor
    """Values per channel, as float64."""
    means: Mapping[str, Tensor]
    """By name, in float64."""


@runtime_checkable
class Gathers(Protocol):
    """A layer with running statistics that `normcore.statistics` can compute anew.

    Running statistics are the buffers whose names begin with `running_`, as in torch.
    """

    @property
    def momentum(self) -> float | None:
        """Weight of the newest batch in the running statistics; None where all batches count alike."""
        ...

    def reset_statistics(self) -> None:
        """Put the running statistics back to where they began."""
        ...

    def moments(self, x: Tensor, mask: Tensor | None = None) -> Moments:
        """Those of an input, as `forward` would be given it."""
        ...

    def statistics(self, moments: Moments, *, unbiased: bool) -> dict[str, Tensor]:
        """The running statistics that these moments stand for, by the names of their buffers.

        Args:
            moments: Of one batch, or pooled over several.
            unbiased: Whether a variance is to be that of the population the values were drawn from, divided by m - 1
                (one batch), or that of the values themselves, divided by m (pooled over all there are).
        """
        ...


@runtime_checkable
class GathersItself(Protocol):
    """A layer that gathers its running statistics alone, in training passes after a reset, by the estimate it is set
    to.

    All its buffers belong to them, counts too. It is what `normcore.statistics` can do with a layer whose statistics
    are not those of its whole input, such as one that keeps them for each time step.
    """

    estimator: Any
    """ema, paper or population."""

    def reset_statistics(self) -> None:
        """Put the running statistics back to where they began."""
        ...


def channel_moments(x: Tensor, mask: Tensor | None = None) -> Moments:
    """`mean` and `square`, the means of x and x^2 per channel over samples and pixels (`mask`: over real ones).

    They are taken in float32 or better around the batch's own mean and put together in float64, where E[x^2] - E[x]^2
    still has seven digits at a mean of 10,000 standard deviations.

    Example:
        >>> moments = channel_moments(torch.tensor([[1.0], [3.0]]))
        >>> moments.count.item(), moments.means["mean"].item(), moments.means["square"].item()
        (2.0, 2.0, 5.0)
    """
    if mask is None:
        dims = (0, *range(2, x.dim()))
        var, mean = torch.var_mean(x.to(at_least_float32(x.dtype)), dim=dims, correction=0)
        count = torch.full((), x.shape[0] * pixels_of(x), dtype=torch.float64, device=x.device)
    else:
        mean, var, _ = (t.flatten() for t in masked_mean_var(x, mask, (0, *range(2, x.dim()))))
        count = mask.sum(dtype=torch.float64)
    mean, var = mean.double(), var.double()
    return Moments(count, {"mean": mean, "square": var + mean.square()})


def mean_and_var(moments: Moments, *, unbiased: bool) -> tuple[Tensor, Tensor]:
    """Mean and variance of channel moments, in float64; a single value has the variance 0.

    Example:
        >>> mean_and_var(channel_moments(torch.tensor([[1.0], [3.0]])), unbiased=True)[1].item()
        2.0
    """
    mean = moments.means["mean"]
    var = (moments.means["square"] - mean.square()).clamp(min=0)
    return mean, var * moments.count / (moments.count - 1).clamp(min=1) if unbiased else var
