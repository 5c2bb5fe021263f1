"""How the norms of a model are doing: what they have learned, what they divide by, and what evaluation will meet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite, nan
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from normcore.norms.diagnosis import Diagnoses
from normcore.norms.gathering import channel_moments, mean_and_var
from normcore.norms.none import NoNorm
from normcore.probes.moment import Moment
from normcore.probes.probe import Sees
from normcore.records import Reading
from normcore.recurrent.lstm_cell import NoTimeNorm
from normcore.statistics.divisors import channels_first, divisor
from normcore.statistics.gap import train_eval_gap
from normcore.statistics.layers import has_running_statistics
from normcore.surgery.channels_last import ChannelsLast
from normcore.surgery.known import is_norm

WORDS = {"weight": "gamma", "bias": "beta"}
"""What the papers call the parameters that torch calls weight and bias."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NormHealthProbe:
    """What each norm of a model has learned, and where it fails in silence, on the training batch.

    The layers are all norms, of the menu, of torch or by their name, in the order of `model.named_modules()`, without
    identities in the place of one. Per layer there are, NaN where a layer has no such thing or was not reached:

    - `<name>_mean`, `<name>_min`, `<name>_max` of every learned parameter over its values: `gamma`, `beta`, and by
      their own names what else there is: `tau` and `eps_l` of filter response norm, `v` of the EvoNorms, `sigma` of
      divisive norm, `alpha` of dyt, `mean_weight` and `var_weight` of switchable norm; and `gamma_smallest`, the
      smallest |gamma|: a channel of gamma 0 is switched off;
    - `gap_output`, `gap_mean`, `gap_spread`: the layer in training against the same layer in evaluation, as in
      `normcore.statistics.gap.train_eval_gap`, by the running statistics that evaluation right now would use;
    - `below_eps`: the share of what the norm divides by (variances of channels, of groups, of pixels; see
      `normcore.statistics.divisors.divisor`) that is smaller than the eps added to it. There eps decides, and the
      output is no longer normalized, without any error;
    - `channel_height`: the lowest mean / standard deviation of a channel of the output, over batch and pixels (channels
      that are constant aside). A relu behind it lets almost nothing pass at -3: the distance from the elimination
      singularity, at which a channel is off for good (after Qiao et al. 2019, arXiv:1911.09738). Batch norm holds it at
      beta / |gamma|, group and layer norm do not hold it. NaN where a layer is its own activation;
    - what the layer says of its arithmetic, such as `newton_residual` of `iterative`, in [0, 1] unless it fails.

    Scalars: `gamma_abs_min` and `channel_height_min`, the smallest of all layers; `below_eps_max`, `gap_output_max` and
    `newton_residual_max`, the largest; each where there is a finite value.

    Costs a forward pass, another through the layers with running statistics, reductions over the input and output of
    every norm, and a copy of the parameters: of a VGG-11 on a CPU about 1.4 training steps with batch norm and 0.9 with
    group norm; of an MLP with steps of 2 ms, in which small operations count, about 3.

    Example:
        >>> from normcore.probes.look import look
        >>> model, x = nn.Sequential(nn.BatchNorm1d(2)), torch.tensor([[1.0, 2.0], [1.0, 4.0]])
        >>> reading = look(NormHealthProbe(), model, lambda: model(x).sum(), lr=0.1)
        >>> reading.layers, reading.arrays["below_eps"], reading.scalars["gamma_abs_min"]
        (('0',), (0.5,), 1.0)
    """

    kind: ClassVar[str] = "norm_health"
    sees: ClassVar[Sees] = "step"
    evaluates: ClassVar[bool] = True

    def read(self, moment: Moment) -> Reading:
        """Measure at a step, between its backward pass and its update."""
        seen = {path: _Seen(layer) for path, layer in norm_layers(moment.model).items()}
        if not seen:
            return Reading(self.kind, moment.step, {}, {})
        replay = moment.plain()
        handles = [norm.watch() for norm in seen.values()]
        try:
            # Its own pass is the one that is watched.
            gaps = {gap.layer: gap for gap in train_eval_gap(moment.model, None, infer=lambda _: replay())}
        finally:
            for handle in handles:
                handle.remove()
        numbers = {path: norm.learned() | norm.found() for path, norm in seen.items()}
        for path, gap in gaps.items():
            if path in numbers:
                numbers[path] |= {"gap_output": gap.output, "gap_mean": gap.mean, "gap_spread": gap.spread}
        names = dict.fromkeys((*ALWAYS, *(name for of_layer in numbers.values() for name in of_layer)))
        arrays = {name: tuple(of_layer.get(name, nan) for of_layer in numbers.values()) for name in names}
        return Reading(self.kind, moment.step, _scalars(arrays), arrays, tuple(seen))

    def cost(self, model: nn.Module) -> float:
        """A forward pass and as many reductions over the maps; with running statistics half a step more."""
        return 1.4 if any(has_running_statistics(layer) for layer in norm_layers(model).values()) else 0.9


ALWAYS = (
    *(f"{name}_{what}" for name in ("gamma", "beta") for what in ("mean", "min", "max")),
    "gamma_smallest",
    *("gap_output", "gap_mean", "gap_spread"),
    "below_eps",
    "channel_height",
)
"""Arrays that every reading of a model with norms has, whatever these are."""
SCALARS: dict[str, tuple[Callable[[list[float]], float], str]] = {
    "gamma_abs_min": (min, "gamma_smallest"),
    "channel_height_min": (min, "channel_height"),
    "below_eps_max": (max, "below_eps"),
    "gap_output_max": (max, "gap_output"),
    "newton_residual_max": (max, "newton_residual"),
}
"""What is worst of all layers."""


def norm_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The norms of a model by path; neither identities in the place of one nor norms of weights.

    Example:
        >>> list(norm_layers(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), NoNorm(2))))
        ['1']
    """
    return {
        path: layer
        for path, layer in model.named_modules()
        # A layer around a norm of the shelf is not another.
        if is_norm(layer) and not isinstance(layer, NoNorm | NoTimeNorm | ChannelsLast)
        if "parametrizations" not in path.split(".")
    }


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a norm did in the passes of a batch; it may be run several times."""

    layer: nn.Module
    below: list[Tensor] = field(default_factory=list)
    """Of each run, how many values it divides by are below eps, and how many there are."""
    heights: list[Tensor] = field(default_factory=list)
    diagnoses: dict[str, list[Tensor]] = field(default_factory=dict)

    def watch(self) -> RemovableHandle:
        return self.layer.register_forward_hook(self._after, with_kwargs=True)

    def _after(self, layer: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        x = (*args, *named.values())[0]
        mask = named.get("real", named.get("mask", args[1] if len(args) > 1 else None))
        divides = divisor(layer, x, mask)
        if divides is not None:
            below = divides.below_eps
            self.below.append(torch.stack([below.sum(), below.new_full((), below.numel(), dtype=torch.long)]))
        if not getattr(layer, "activates", False) and (maps := channels_first(layer, output)) is not None:
            self.heights.append(_lowest(maps, mask))
        if isinstance(layer, Diagnoses):
            for name, value in layer.diagnosis().items():
                self.diagnoses.setdefault(name, []).append(value.detach().double().max())

    def learned(self) -> dict[str, float]:
        """Means and extremes of the parameters."""
        found: dict[str, Tensor] = {}
        for own_name, parameter in self.layer.named_parameters(recurse=False):
            name, values = WORDS.get(own_name, own_name), parameter.detach().double()
            measures = {"mean": values.mean(), "min": values.min(), "max": values.max()}
            if name == "gamma":
                measures["smallest"] = values.abs().min()
            found |= {f"{name}_{what}": value for what, value in measures.items()}
        return _to_host(found)

    def found(self) -> dict[str, float]:
        """What was measured in the passes."""
        found: dict[str, Tensor] = {}
        if isinstance(self.layer, Diagnoses):
            unknown = [torch.full((), nan)]
            found = {name: torch.stack(self.diagnoses.get(name, unknown)).max() for name in self.layer.diagnosis()}
        if self.below:
            below, units = torch.stack(self.below).sum(0).double().unbind()
            found["below_eps"] = below / units
        if self.heights:
            lowest = torch.stack(self.heights).min()
            found["channel_height"] = torch.where(lowest.isposinf(), nan, lowest)
        return _to_host(found)


def _lowest(maps: Tensor, mask: Tensor | None) -> Tensor:
    """The lowest mean / standard deviation of a channel that is not constant; infinity where all are."""
    mean, var = mean_and_var(channel_moments(maps, mask), unbiased=False)
    return torch.where(var == 0, torch.inf, mean / var.sqrt()).min()


def _to_host(values: dict[str, Tensor]) -> dict[str, float]:
    """One copy to the host for all."""
    return dict(zip(values, torch.stack(list(values.values())).tolist(), strict=True)) if values else {}


def _scalars(arrays: Mapping[str, Sequence[float]]) -> dict[str, float]:
    scalars = {}
    for name, (worst, array) in SCALARS.items():
        if finite := [value for value in arrays.get(array, ()) if isfinite(value)]:
            scalars[name] = worst(finite)
    return scalars
