"""How far a layer in training is from the same layer in evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import nan
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from normcore.norms.gathering import channel_moments, mean_and_var
from normcore.norms.norm import at_least_float32
from normcore.probes.footprints import no_footprints
from normcore.statistics.layers import gathering, has_running_statistics, running_statistics


@dataclass(frozen=True, slots=True)
class Gap:
    """Relative differences between a layer in training mode and in evaluation mode on the same input.

    NaN stands where a layer keeps no such statistic, or keeps one that is unknown here.
    """

    layer: str
    """Its path."""
    output: float
    """||y_train - y_eval|| / ||y_train||."""
    mean: float
    """||mean_batch - running_mean|| / ||sigma_batch||: in standard deviations."""
    spread: float
    """||s_batch - s|| / ||s|| with s the other running statistics: the variance, with batch norm."""


def train_eval_gap(model: nn.Module, x: Any, *, infer: Callable[[Any], object] | None = None) -> tuple[Gap, ...]:
    """The gap between training and evaluation of every layer that has running statistics, on one batch.

    The batch passes once through the model in training mode; each layer is also run in evaluation mode on the very
    input it is given, with the running statistics of before the batch, and both outputs are compared. So a gap is that
    of the layer itself, and not of those below it. A model whose layers have no gap evaluates as it trains; a large gap
    makes a test loss bad where the training loss is good: small batches, noise, a momentum that is too small, batches
    that are not alike. All norms are L2 over all values or channels.

    Costs a forward pass, and another through each of these layers.

    Args:
        model: Any module; it is left as it was found.
        x: A batch, as in training.
        infer: Runs the model; the model itself where not given.

    Returns:
        One gap per layer, in the order of `model.named_modules()`; none for a layer that the batch did not reach.

    Example:
        >>> model = nn.Sequential(nn.BatchNorm1d(1))
        >>> train_eval_gap(model, torch.tensor([[2.0], [4.0]]))
        (Gap(layer='0', output=3.0, mean=3.0, spread=1.0),)
    """
    with no_footprints(model), torch.no_grad():
        model.train()
        seen = {path: _Seen(module) for path, module in model.named_modules() if has_running_statistics(module)}
        handles = [hook for layer in seen.values() for hook in layer.watch()]
        try:
            (infer or model)(x)
        finally:
            for handle in handles:
                handle.remove()
        return tuple(layer.gap(path) for path, layer in seen.items() if layer.outputs)


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a layer did in the passes of a batch; it may be run several times, and then its last statistics count."""

    layer: nn.Module
    evaluated: list[Tensor] = field(default_factory=list)
    outputs: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """Of each run, the norms of the difference and of the output in training."""
    statistics: list[Tensor] = field(default_factory=list)
    """Of each run, the gaps of mean and spread."""

    def watch(self) -> list[RemovableHandle]:
        return [
            self.layer.register_forward_pre_hook(self._before, with_kwargs=True),
            self.layer.register_forward_hook(self._after),
        ]

    def _before(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        modes = [(module, module.training) for module in layer.modules()]
        layer.eval()
        # Not the call: hooks are for the passes of the model.
        self.evaluated.append(layer.forward(*args, **kwargs))
        for module, training in modes:
            module.training = training
        self.statistics.append(_of_statistics(layer, *args, **kwargs))

    def _after(self, _: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
        trained, evaluated = (y.to(at_least_float32(y.dtype)) for y in (output, self.evaluated.pop()))
        self.outputs.append((_norm(trained - evaluated), _norm(trained)))

    def gap(self, path: str) -> Gap:
        differences, norms = (torch.stack(column) for column in zip(*self.outputs, strict=True))
        output = _ratio(_norm(differences), _norm(norms))
        return Gap(path, *torch.stack([output, *self.statistics[-1].unbind()]).tolist())


def _of_statistics(layer: nn.Module, x: Tensor, *others: Any, **named: Any) -> Tensor:
    """The gaps of mean and spread, in float64."""
    kept = {name: value.double() for name, value in running_statistics(layer).items()}
    gathers = gathering(layer)
    unknown = torch.full((), nan, dtype=torch.float64, device=x.device)
    if gathers is None:
        return torch.stack([unknown, unknown])
    new = gathers.statistics(gathers.moments(x, *others, **named), unbiased=True)
    mean = unknown
    if "running_mean" in new:
        _, var = mean_and_var(channel_moments(x, *others, **named), unbiased=False)
        mean = _ratio(_norm(new["running_mean"] - kept["running_mean"]), _norm(var.sqrt()))
    spreads = [name for name in new if name != "running_mean"]
    difference = torch.cat([(new[name] - kept[name]).flatten() for name in spreads])
    return torch.stack([mean, _ratio(_norm(difference), _norm(torch.cat([kept[name].flatten() for name in spreads])))])


def _norm(values: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(values, dtype=torch.float64)
    return norm


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """`part / whole`, and 0 where both are."""
    return torch.where(part == 0, part, part / whole)
