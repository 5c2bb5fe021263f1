"""Sums over values that pass one place of a model, and the statistics that follow from them."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, gcd, nan, prod

import torch
from torch import Tensor

Slope = Callable[[Tensor], Tensor]
"""The derivative of a non-linearity at each of its inputs, over the largest there is."""

PART = 2**20
"""Values that are looked at together."""
SAMPLED_VALUES = 2**15
"""Of a part, that percentiles are taken from."""
SAMPLED_ROWS = 2**12
"""Of a part, that covariances are taken from."""
SIDES = 2 * 3 * 7
"""What the sides of maps are multiples of, those of images of 32, 96 and 224 pixels and of their halves."""
CHANNELS = 256
"""The first, that covariances are taken of."""
FLAT = 0.05
"""Share of the largest slope below which a non-linearity is saturated."""
PERCENTILES = (15, 50, 85)
STATISTICS = (
    *("mean", "var", "skew"),
    *(f"p{p}" for p in PERCENTILES),
    *("saturated", "effective_rank", "correlation", "channels"),
)


class Tally:
    """Takes rows of channels, however many at a time, and says how they are distributed.

    Sums are of distances from a center near the mean, in float64, and so are exact but for rounding; where there are
    more than a million values, percentiles are those of every 37th or so, and covariances those of some of the rows.

    Args:
        slope: Of the non-linearity that is given the values, where there is one.

    Example:
        >>> tally = Tally()
        >>> tally.take(torch.tensor([[0.0, 1.0], [2.0, 5.0]]))
        >>> found = tally.statistics()
        >>> found["mean"], found["var"], found["p50"], found["correlation"]
        (2.0, 3.5, 1.5, 1.0)
    """

    _center: Tensor
    """What the sums of all values are about."""
    _centers: Tensor
    """What those of each channel are about, `(channels,)`."""
    _values: Tensor
    """Count, and sums of the first three powers of the distances."""
    _saturated: Tensor
    _rows: Tensor
    """How many have been looked at channel by channel."""
    _first: Tensor
    """Sums of their distances, `(channels,)`."""
    _second: Tensor
    """Sums of products of their distances, `(channels, channels)`."""

    def __init__(self, slope: Slope | None = None) -> None:
        self._slope, self._waiting, self._sample = slope, list[Tensor](), list[Tensor]()
        self._thinning: tuple[int, int] | None = None
        self._between: Tensor | None = None
        self._channels = 0

    def take(self, rows: Tensor) -> None:
        """Look at values `(N, C)`; rows with another C than the first are looked at without telling channels apart."""
        if not rows.numel():
            return
        if rows.numel() >= PART:
            # Before what waits: how much is left out is decided by what comes first.
            self._add(rows.detach())
            return
        # A copy: modules that work in place are about to overwrite it.
        self._waiting.append(rows.detach().clone())
        if sum(each.numel() for each in self._waiting) >= PART:
            self._settle()

    def share(self, average: Callable[[list[Tensor]], None]) -> None:
        """Take in what the tallies of other devices have seen of the same place.

        Args:
            average: Replaces tensors by their means over the devices, in place.
        """
        self._settle()
        if not self._channels:
            return
        count, rows = self._values[0].clone(), self._rows.clone()
        means = [self._center * count + self._values[1], self._centers * rows + self._first]
        average([count, rows, *means])
        # Sums about one and the same center add up.
        self._recenter(means[0] / count, means[1] / rows)
        self._between = self._percentiles()
        average([self._values, self._saturated, self._rows, self._first, self._second, self._between])

    def statistics(self) -> dict[str, float]:
        """`STATISTICS`, NaN where there is none; `channels` are those that covariances are of, 0 before any row."""
        self._settle()
        if not self._channels:
            return dict.fromkeys(STATISTICS, nan) | {"channels": 0}
        count = self._values[0]
        self._recenter(self._center + self._values[1] / count, self._centers + self._first / self._rows)
        _, _, var, third = (self._values / count).tolist()
        percentiles = (self._percentiles() if self._between is None else self._between).tolist()
        covariance = (self._second / self._rows).cpu()
        return {
            "mean": float(self._center),
            "var": var,
            "skew": third / var**1.5 if var > 0 else nan,
            **{f"p{p}": value for p, value in zip(PERCENTILES, percentiles, strict=True)},
            "saturated": nan if self._slope is None else float(self._saturated / count),
            "effective_rank": effective_rank(covariance),
            "correlation": mean_correlation(covariance),
            "channels": self._channels,
        }

    def _percentiles(self) -> Tensor:
        values = torch.cat(self._sample)
        # More than 16 million values at once are refused by torch.
        values = values[:: ceil(len(values) / 2**23)]
        return torch.quantile(values, torch.tensor(PERCENTILES, dtype=values.dtype, device=values.device) / 100)

    def _recenter(self, center: Tensor, centers: Tensor) -> None:
        """Make the sums those of distances from another center, and from another for each channel."""
        count, first, second, third = self._values.unbind()
        d = self._center - center
        self._values = torch.stack(
            [
                count,
                first + count * d,
                second + 2 * d * first + count * d**2,
                third + 3 * d * second + 3 * d**2 * first + count * d**3,
            ]
        )
        each = self._centers - centers
        cross = torch.outer(each, self._first)
        self._second = self._second + cross + cross.T + self._rows * torch.outer(each, each)
        self._first = self._first + self._rows * each
        self._center, self._centers = center, centers

    def _settle(self) -> None:
        """Look at what waits."""
        waiting, self._waiting = self._waiting, []
        for width in dict.fromkeys(each.shape[1] for each in waiting):
            self._add(torch.cat([each for each in waiting if each.shape[1] == width]))

    def _add(self, rows: Tensor) -> None:
        if not self._channels:
            self._begin(rows)
        for part in rows.chunk(ceil(rows.numel() / PART)):
            if self._slope is not None:
                wide = part.to(torch.promote_types(part.dtype, torch.float32))
                self._saturated += (self._slope(wide).abs() < FLAT).sum()
            self._add_part(part)

    def _begin(self, rows: Tensor) -> None:
        # Any center near the mean will do.
        first = rows[: max(1, SAMPLED_VALUES // rows.shape[1])].double()
        count, width = min(rows.numel(), PART), rows.shape[1]
        # No divisor in common with what may repeat itself, the channels and the sides of maps: all are to be met.
        self._thinning = (
            _stride(count, SAMPLED_VALUES, width * SIDES),
            _stride(count // width, SAMPLED_ROWS, SIDES),
        )
        self._width, self._channels = width, min(width, CHANNELS)
        self._center, self._centers = first.mean(), first[:, :CHANNELS].mean(0)
        zeros = first.new_zeros
        self._values, self._saturated, self._rows = zeros(4), zeros(()), zeros(())
        self._first, self._second = zeros(self._channels), zeros(self._channels, self._channels)

    def _add_part(self, part: Tensor) -> None:
        assert self._thinning is not None
        values, rows = self._thinning
        self._sample.append(part.reshape(-1)[::values].to(torch.float64, copy=True))
        if part.shape[1] == self._width:
            some = part[::rows, :CHANNELS].double() - self._centers
            self._rows += len(some)
            self._first += some.sum(0)
            self._second += some.T @ some
        # In place and by inner products: fresh memory costs more than sums do.
        apart = part.to(torch.float64, copy=True).sub_(self._center).reshape(-1)
        square = apart.square()
        self._values[0] += part.numel()
        self._values[1:] += torch.stack([apart.sum(), torch.dot(apart, apart), torch.dot(square, apart)])


def effective_rank(covariance: Tensor) -> float:
    """The exponential of the entropy of the eigenvalues over their sum (Roy & Vetterli 2007); NaN where there is none.

    Between 1 and C: the number of directions that would give this entropy if all had the same variance.

    Example:
        >>> round(effective_rank(torch.eye(3)), 9), effective_rank(torch.diag(torch.tensor([2.0, 0.0, 0.0])))
        (3.0, 1.0)
    """
    if not bool(covariance.isfinite().all()):
        return nan
    values = torch.linalg.eigvalsh(covariance.double()).clamp(min=0)
    if not float(values.sum()) > 0:
        return nan
    shares = values / values.sum()
    return float(torch.exp(torch.special.entr(shares).sum()))


def mean_correlation(covariance: Tensor) -> float:
    """Mean absolute correlation of pairs of channels that vary; NaN where there are fewer than two such channels.

    Example:
        >>> mean_correlation(torch.tensor([[4.0, 1.0], [1.0, 1.0]], dtype=torch.float64))
        0.5
    """
    varying = covariance.diagonal() > 0
    some = covariance[varying][:, varying]
    if len(some) < 2:
        return nan
    std = some.diagonal().sqrt()
    correlation = (some / std / std.unsqueeze(1)).abs()
    return float((correlation.sum() - correlation.trace()) / prod((len(some), len(some) - 1)))


def _stride(count: int, limit: int, period: int) -> int:
    """The smallest step that leaves at most about `limit` of `count` and has no divisor in common with `period`."""
    step = max(1, ceil(count / limit))
    while gcd(step, period) > 1:
        step += 1
    return step
