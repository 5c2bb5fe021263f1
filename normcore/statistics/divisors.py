"""What each norm takes the root of and divides by, beside the eps that it adds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from normcore.norms.batch_renorm import BatchRenorm
from normcore.norms.decorrelating import Decorrelating
from normcore.norms.evonorm_b0 import EvoNormB0
from normcore.norms.evonorm_s0 import EvoNormS0
from normcore.norms.filter_response import FilterResponseNorm
from normcore.norms.gathering import mean_and_var
from normcore.norms.ghost import GhostBatchNorm
from normcore.norms.group import GroupNorm
from normcore.norms.instance import InstanceNorm
from normcore.norms.layer import LayerNorm
from normcore.norms.layer_channels import LayerNormChannels
from normcore.norms.lp import LpNorm
from normcore.norms.masked import masked_mean_var
from normcore.norms.norm import Norm, at_least_float32
from normcore.norms.power import PowerNorm
from normcore.norms.rms import RmsNorm
from normcore.norms.running import RunningNorm
from normcore.norms.switchable import SwitchableNorm
from normcore.norms.sync import SyncBatchNorm
from normcore.recurrent.time_batch_norm import TimeBatchNorm
from normcore.recurrent.time_layer_norm import TimeLayerNorm
from normcore.recurrent.time_norm import TimeNorm
from normcore.surgery.known import CHANNELS_FIRST_LAYER_NORMS


@dataclass(frozen=True, slots=True)
class Divisor:
    """What a norm divides a batch by in training, before its eps: one value of each set of values it averages over."""

    statistic: Tensor
    """Variances, or what else stands there (mean squares, deviations, lp norms, eigenvalues); channels come last."""
    eps: Tensor | float
    """What is added to them, one number or one per channel."""

    @property
    def below_eps(self) -> Tensor:
        """Which of them are smaller than eps, and so do not decide what is divided by."""
        return self.statistic < self.eps


def divisor(layer: nn.Module, x: Tensor, mask: Tensor | None = None) -> Divisor | None:
    """What a norm of the menu, or of torch, divides an input by in training; None where it adds no eps, or is another.

    | norm | one value for | of |
    |---|---|---|
    | batch, sync, evonorm_b0, torch's | each channel | variance over batch and pixels |
    | ghost | each channel of a virtual batch | the same |
    | batch_renorm | each channel | standard deviation |
    | lp; power | each channel | lp norm; mean square, of the batch |
    | whitening, iterative | each direction of a group | eigenvalue of the covariance |
    | layer; group, evonorm_s0; instance | each sample; its groups; its channels | variance |
    | filter_response | each channel of a sample | mean square |
    | layer_channels; rms | each pixel | variance; mean square |
    | switchable | each channel of a sample | the mixture of three variances |
    | BN-LSTM; LN-LSTM | each value at a time step; each sample there | variance |

    Variances are biased. Of a masked input only real tokens count.

    Args:
        layer: Any.
        x: Its input, in its own order of dimensions.
        mask: True where a token is real, where the layer was given one.

    Example:
        >>> x = torch.tensor([[1.0, 5.0], [1.0, 7.0]])
        >>> divisor(nn.BatchNorm1d(2), x).statistic.tolist(), divisor(nn.BatchNorm1d(2), x).below_eps.tolist()
        ([0.0, 1.0], [True, False])
    """
    maps = channels_first(layer, x)
    if maps is None:
        return None
    read = next((read for kind, read in READERS if isinstance(layer, kind)), None)
    eps = getattr(layer, "eps", None)
    if isinstance(layer, nn.RMSNorm) and eps is None:
        eps = torch.finfo(x.dtype).eps
    if isinstance(layer, FilterResponseNorm) and layer.eps_l is not None:
        eps = layer.eps + layer.eps_l.detach().abs()
    if read is None or eps is None:
        return None
    return Divisor(read(layer, maps.to(at_least_float32(x.dtype)), mask), eps)


def channels_first(layer: nn.Module, x: Tensor) -> Tensor | None:
    """An input or output of a norm as `(N, C, *)`; None where nobody here knows which dimension is its channels."""
    if isinstance(layer, nn.LayerNorm | nn.RMSNorm):
        last = len(layer.normalized_shape) == 1 and type(layer).__name__ not in CHANNELS_FIRST_LAYER_NORMS
        return x.movedim(-1, 1) if last else x
    if isinstance(layer, TimeNorm):
        return x.movedim(-1, 1)
    return x if isinstance(layer, Norm | _BatchNorm | _InstanceNorm | nn.GroupNorm | nn.LocalResponseNorm) else None


def _channels(_: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
    return _mean_and_var(x, (0, *range(2, x.dim())), mask)[1]


def _channels_of_all(layer: SyncBatchNorm, x: Tensor, _: Tensor | None) -> Tensor:
    """Of all ranks."""
    return mean_and_var(layer.moments(x), unbiased=False)[1]


def _channel_deviations(layer: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
    return _channels(layer, x, mask).sqrt()


def _channel_lengths(layer: LpNorm, x: Tensor, _: Tensor | None) -> Tensor:
    return layer.statistics(layer.moments(x), unbiased=False)["running_norm"]


def _channel_squares(layer: PowerNorm, x: Tensor, mask: Tensor | None) -> Tensor:
    return layer.moments(x, mask).means["square"]


def _ghosts(layer: GhostBatchNorm, x: Tensor, mask: Tensor | None) -> Tensor:
    return _of_groups(torch.unflatten(x, 0, (-1, layer.virtual_batch_size)).transpose(1, 2), x.shape[1], mask)[1]


def _eigenvalues(layer: Decorrelating, x: Tensor, mask: Tensor | None) -> Tensor:
    """Of the covariance of each group, in float64."""
    moments = layer.moments(x, mask).means
    mean = moments["mean"].view(-1, layer.channels_per_group, 1)
    eigenvalues: Tensor = torch.linalg.eigvalsh(moments["square"] - mean @ mean.mT)
    return eigenvalues.flatten()


def _mixtures(layer: SwitchableNorm, x: Tensor, mask: Tensor | None) -> Tensor:
    of_instance = _of_groups(x, x.shape[1], mask)[1].view(x.shape[:2])
    of_layer = _of_groups(x, 1, mask)[1].unsqueeze(1)
    weights = layer.var_weight.detach().to(x.dtype).softmax(0)
    return weights[0] * of_instance + weights[1] * of_layer + weights[2] * _channels(layer, x, mask)


def _maps(_: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
    return _of_groups(x, x.shape[1], mask)[1]


def _map_squares(_: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
    return _mean_square(*_of_groups(x, x.shape[1], mask)).view(x.shape[:2])


def _groups(layer: Any, x: Tensor, mask: Tensor | None) -> Tensor:
    return _of_groups(x, layer.num_groups, mask)[1]


def _samples(_: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
    return _of_groups(x, 1, mask)[1]


def _pixels(_: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
    return _mean_and_var(x, (1,), mask)[1]


def _pixel_squares(_: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
    return _mean_square(*_mean_and_var(x, (1,), mask))


def _values_at_each_time(_: nn.Module, x: Tensor, mask: Tensor | None) -> Tensor:
    return _mean_and_var(x, (0,), mask)[1]


def _last_dimensions(layer: Any, x: Tensor, mask: Tensor | None) -> Tensor:
    """Of torch's norms over one dimension, which then is the channels, or over several."""
    several = len(layer.normalized_shape)
    mean, var = _mean_and_var(x, (1,) if several == 1 else tuple(range(-several, 0)), mask)
    return var if isinstance(layer, nn.LayerNorm) else _mean_square(mean, var)


READERS: tuple[tuple[Any, Callable[[Any, Tensor, Tensor | None], Tensor]], ...] = (
    (Decorrelating, _eigenvalues),
    (SwitchableNorm, _mixtures),
    (LpNorm, _channel_lengths),
    (PowerNorm, _channel_squares),
    (BatchRenorm, _channel_deviations),
    (GhostBatchNorm, _ghosts),
    (SyncBatchNorm, _channels_of_all),
    ((RunningNorm, EvoNormB0, _BatchNorm), _channels),
    ((InstanceNorm, _InstanceNorm), _maps),
    ((GroupNorm, EvoNormS0, nn.GroupNorm), _groups),
    (LayerNorm, _samples),
    (FilterResponseNorm, _map_squares),
    ((LayerNormChannels, TimeLayerNorm), _pixels),
    (RmsNorm, _pixel_squares),
    (TimeBatchNorm, _values_at_each_time),
    ((nn.LayerNorm, nn.RMSNorm), _last_dimensions),
)
"""What each kind divides `(N, C, *)` in float32 or better by, eps aside; the first that fits."""


def _of_groups(x: Tensor, num_groups: int, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and variance of each group of channels of each sample."""
    groups = torch.unflatten(x, 1, (num_groups, -1)).flatten(0, 1)
    of_each = None if mask is None else mask.repeat_interleave(num_groups, 0)
    return _mean_and_var(groups, tuple(range(1, groups.dim())), of_each)


def _mean_and_var(x: Tensor, dims: Sequence[int], mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over `dims`, of each set that holds a real value, in a row."""
    if mask is None:
        var, mean = torch.var_mean(x, dim=tuple(dims), correction=0)
        return mean.flatten(), var.flatten()
    mean, var, _ = masked_mean_var(x, mask, dims)
    real = mask.unsqueeze(1).any(tuple(dims), keepdim=True).expand_as(var)
    return mean[real], var[real]


def _mean_square(mean: Tensor, var: Tensor) -> Tensor:
    return var + mean.square()
