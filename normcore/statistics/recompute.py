"""The statistics that a trained model evaluates with, computed anew."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from normcore.noise.noise import Drawing
from normcore.norms.gathering import Gathers, GathersItself, Moments
from normcore.probes.footprints import no_footprints
from normcore.statistics.layers import gathering, gathering_itself, has_running_statistics

Estimator = Literal["ema", "paper", "population"]


@dataclass(frozen=True, slots=True)
class Recomputed:
    """What became of the running statistics of a model, by the paths of its layers."""

    layers: tuple[str, ...]
    """Have new ones."""
    unseen: tuple[str, ...]
    """Were reached by no batch, and keep theirs."""
    unknown: tuple[str, ...]
    """Have buffers that training moves and that nobody here knows how to compute, and keep theirs."""


def recompute_statistics(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    estimator: Estimator = "population",
    infer: Callable[[Any], object] | None = None,
    noise: bool = False,
) -> Recomputed:
    """Give every layer of a model the running statistics of `batches`, for good.

    The batches pass once through the model in training mode, each layer normalizing by the batch as in training, and
    what each layer is given is gathered. With m_b and v_b the mean and the biased variance of the n_b values that a
    channel has in batch b, the new statistics are

    - `population`: those of all values together, whatever the sizes of the batches:
      mean = sum_b n_b m_b / n and var = sum_b n_b (v_b + (m_b - mean)^2) / n with n = sum_b n_b;
    - `paper`: mean_b(m_b) and mean_b(n_b / (n_b - 1) v_b), each batch with the same weight, which misses the variance
      between the batches (Ioffe & Szegedy 2015, algorithm 2; torch's `update_bn`);
    - `ema`: averages of the same two in which a batch weighs (1 - momentum) times the one after it: what training
      leaves behind, but without a trace of the values it began with. Where a layer's momentum is None, it is `paper`.

    The same holds for layers that keep something else than a variance (`normcore.norms.gathering`). Moments are taken
    in float32 or better and pooled in float64. Counters (`num_batches_tracked`) stay as they are. A layer that can only
    gather by itself, as those with statistics for each time step do, is reset and left to it, counters included, and
    its `ema` sets out from where a new layer would. Costs a forward pass per batch and, for a while, a copy of the
    model.

    Args:
        model: Any module: torch's batch norms are known, and every norm of ours. Everything but the running statistics
            is left as it was found: parameters, gradients, modes, random state.
        batches: What `infer` takes, of the training set; of a tuple or list its first element.
        estimator: Which estimate.
        infer: Runs the model; the model itself where not given.
        noise: Let layers that draw, noise and dropout, draw as in training, for whoever starts their steps; else they
            are silent as in evaluation, so that the statistics are those of what evaluation meets.

    Returns:
        Which layers have new statistics, and which have not.

    Example:
        >>> model, x = nn.BatchNorm1d(2), torch.tensor([[1.0, 2.0], [3.0, 2.0]])
        >>> recompute_statistics(model, [x]).layers
        ('',)
        >>> model.running_mean, model.running_var
        (tensor([2., 2.]), tensor([1., 0.]))
    """
    with no_footprints(model):
        gathered = _gather(model, batches, infer or model, estimator, noise=noise)
    return gathered.write()


@contextmanager
def recomputed_statistics(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    estimator: Estimator = "population",
    infer: Callable[[Any], object] | None = None,
    noise: bool = False,
) -> Iterator[Recomputed]:
    """A scope in which a model has the statistics of `recompute_statistics`; then they are what they were.

    Running statistics gathered under noise or dropout describe other activations than an evaluation without meets, and
    misjudge the model; inside the scope it is judged by what it meets.

    Args:
        model: The model; it is left as it was found, whatever is done to it inside.
        batches: See `recompute_statistics`, here and below.
        estimator: Which estimate.
        infer: Runs the model.
        noise: Let layers that draw, noise and dropout, draw.
    """
    with no_footprints(model):
        yield _gather(model, batches, infer or model, estimator, noise=noise).write()


@dataclass(frozen=True, slots=True)
class _Gathered:
    """New statistics, not yet in their buffers."""

    values: dict[str, tuple[nn.Module, dict[str, Tensor]]]
    """By the path of a layer: the layer, and its buffers by name."""
    unseen: tuple[str, ...]
    unknown: tuple[str, ...]

    @torch.no_grad()
    def write(self) -> Recomputed:
        for module, values in self.values.values():
            for name, value in values.items():
                module.get_buffer(name).copy_(value)
        return Recomputed(tuple(self.values), self.unseen, self.unknown)


def _gather(
    model: nn.Module, batches: Iterable[Any], infer: Callable[[Any], object], estimator: Estimator, *, noise: bool
) -> _Gathered:
    model.train()
    layers: dict[str, _Layer] = {}
    others: dict[str, tuple[nn.Module, list[Tensor]]] = {}
    for path, module in model.named_modules():
        if isinstance(module, Drawing) and not noise:
            module.eval()
        known = has_running_statistics(module)
        if known and (gathers := gathering(module)) is not None:
            layers[path] = _ByMoments(module, gathers, [])
        elif known and (itself := gathering_itself(module)) is not None:
            layers[path] = _ByItself(module, itself, itself.estimator, [])
        else:
            others[path] = module, [buffer.clone() for buffer in _statistics_like(module)]
    handles = [layer.begin(estimator) for layer in layers.values()]
    try:
        with torch.no_grad():
            for batch in batches:
                infer(batch[0] if isinstance(batch, tuple | list) else batch)
    finally:
        for handle in handles:
            handle.remove()
        found = {path: layer.end(estimator) for path, layer in layers.items()}
    values = {path: (layers[path].module, new) for path, new in found.items() if new}
    moved = (
        path
        for path, (module, before) in others.items()
        if has_running_statistics(module)
        or any(not torch.equal(was, now) for was, now in zip(before, _statistics_like(module), strict=True))
    )
    return _Gathered(values, tuple(path for path in layers if path not in values), tuple(moved))


@dataclass(frozen=True, slots=True)
class _ByMoments:
    """A layer that says what a batch has to say."""

    module: nn.Module
    gathers: Gathers
    seen: list[Moments]

    def begin(self, _: Estimator) -> RemovableHandle:
        return self.module.register_forward_pre_hook(self._take, with_kwargs=True)

    def _take(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.seen.append(self.gathers.moments(*args, **kwargs))

    def end(self, estimator: Estimator) -> dict[str, Tensor]:
        # Of a batch that is all padding there is nothing to be learned.
        seen = [moments for moments in self.seen if moments.count > 0]
        return _estimate(self.gathers, seen, estimator) if seen else {}


@dataclass(frozen=True, slots=True)
class _ByItself:
    """A layer that does it alone, as long as nobody else is in its buffers."""

    module: nn.Module
    gathers: GathersItself
    usual: Any
    """The estimator that it is set to."""
    seen: list[bool]

    def begin(self, estimator: Estimator) -> RemovableHandle:
        self.gathers.estimator = estimator
        self.gathers.reset_statistics()
        return self.module.register_forward_pre_hook(self._take)

    def _take(self, _: nn.Module, __: tuple[Any, ...]) -> None:
        self.seen.append(True)

    def end(self, _: Estimator) -> dict[str, Tensor]:
        self.gathers.estimator = self.usual
        buffers = self.module.named_buffers(recurse=False)
        return {name: buffer.clone() for name, buffer in buffers} if self.seen else {}


_Layer = _ByMoments | _ByItself


def _statistics_like(module: nn.Module) -> list[Tensor]:
    """A layer's own buffers that could be statistics: counters are not."""
    return [buffer for buffer in module.buffers(recurse=False) if buffer.is_floating_point()]


def _estimate(gathers: Gathers, seen: list[Moments], estimator: Estimator) -> dict[str, Tensor]:
    if estimator == "population":
        counts = torch.stack([moments.count for moments in seen])
        shares = counts / counts.sum()
        pooled = {name: _average([m.means[name] for m in seen], shares) for name in seen[0].means}
        return gathers.statistics(Moments(counts.sum(), pooled), unbiased=False)
    each = [gathers.statistics(moments, unbiased=True) for moments in seen]
    weights = torch.ones(len(seen), dtype=torch.float64, device=seen[0].count.device)
    if estimator == "ema" and gathers.momentum is not None:
        ages = torch.arange(len(seen) - 1, -1, -1, dtype=torch.float64, device=weights.device)
        weights = (1 - gathers.momentum) ** ages
    return {name: _average([new[name] for new in each], weights / weights.sum()) for name in each[0]}


def _average(values: list[Tensor], shares: Tensor) -> Tensor:
    average: Tensor = torch.tensordot(shares, torch.stack(values).double(), dims=1)
    return average
