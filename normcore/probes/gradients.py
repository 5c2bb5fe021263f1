"""The sizes of gradients layer by layer, how noisy they are, and whether one step's is like the next one's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite, log10, nan, sqrt
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from normcore.probes.moment import Moment, Replay
from normcore.probes.probe import Sees
from normcore.probes.weight_layers import weights_of
from normcore.records import Reading

Gradient = Sequence[Tensor | None]
"""In the order of `model.parameters()`; None where a parameter has none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GradientsProbe:
    """How large each layer's gradient and update are, how much of the gradient is noise, and how it turns.

    Of every layer with weights W (a parametrized one: of what its weight is made of; biases and norms do not count
    here), with g_1 the gradient of the step's batch at theta^t, there are the arrays

    - `gradient_norm`: ||g_1||;
    - `update_ratio`: ||W^{t+1} - W^t|| / ||W^t||, of which about 1e-3 is usual for SGD; weight decay counts;
    - `cosine`: of g_1 with the gradient of the next batch at theta^{t+1}, the one that the next step will use;
    - `noise_scale`: B tr(Sigma) / |G|^2, in samples: the batch size at which noise and gradient are of one size
      (McCandlish et al. 2018, arXiv:1812.06162, appendix A). G and Sigma are mean and covariance of the gradient of a
      batch of B samples. With g_1, ..., g_m those of `batches` consecutive batches at theta^t, and h their mean,

          tr(Sigma) = (sum_i |g_i|^2 / m - |h|^2) m / (m - 1)        |G|^2 = |h|^2 - tr(Sigma) / m

      which is the paper's estimate from the batch sizes B and m B; both are unbiased where batches are independent.

    The scalars `gradient_norm_total`, `update_ratio_total`, `cosine_total` and `noise_scale_total` are the same for all
    parameters together. `depth_slope` is the slope of the line of least squares through log10 `gradient_norm` of the
    layers over their number, in decades per layer: above zero gradients vanish on their way from the loss to the input,
    below zero they explode. The array `noise` holds tr(Sigma) and |G|^2 of all parameters, and B: the ratio of the two
    is noisy and biased, so over several readings average both before dividing. A ratio without a positive denominator
    is NaN, and no scalar; so is `noise_scale` where the estimate of |G|^2 is not positive, which a larger `batches`
    mends, and where the model is not given a batch as its first argument. Where all batches are the same, as in
    full-batch descent, it is 0 but for rounding.

    With batch statistics the samples of a batch are not independent, and Sigma B depends on B: the noise scale is that
    of batches of this size. Noise and dropout are drawn anew for each batch, and count as noise. Gradients are those of
    the loss, before clipping and without weight decay. Norms that remember earlier passes stand where they stood at the
    step. Under float16 the probe's own losses are not scaled, and their smallest gradients may be lost; a step whose
    gradient overflowed is NaN.

    Layers are in the order of `model.named_modules()`, which in the models on the menu is that of a forward pass, but
    that a convolution in a shortcut stands behind the branch it goes around.

    Costs `batches` forward and backward passes, in the memory of a whole batch, and sums over the parameters: with 4
    batches on a CPU 4 to 4.8 training steps. Holds five copies of the parameters.

    Args:
        batches: Gradients that the noise scale is estimated from, the step's own among them; at least 2.

    Example:
        >>> from normcore.probes.look import look
        >>> model = nn.Linear(2, 1, bias=False)
        >>> _ = model.weight.data.copy_(torch.tensor([[3.0, 4.0]]))
        >>> reading = look(GradientsProbe(), model, lambda: model(torch.eye(2)).square().sum() / 2, lr=0.1)
        >>> {name: round(value, 6) for name, value in reading.scalars.items()}
        {'gradient_norm_total': 5.0, 'update_ratio_total': 0.1, 'cosine_total': 1.0, 'noise_scale_total': 0.0}
    """

    kind: ClassVar[str] = "gradients"
    sees: ClassVar[Sees] = "update"
    evaluates: ClassVar[bool] = False

    batches: int = 4

    def read(self, moment: Moment) -> Reading:
        """Measure after an update."""
        groups = _groups(moment.model)
        noise, samples = _noise(moment, self.batches, groups)
        sizes = _sizes(moment, groups)
        # The model is left at theta^{t+1}, and put back by whoever asked.
        with torch.no_grad():
            torch._foreach_copy_(list(moment.model.parameters()), list(moment.updated))
        after = _gradient(moment, moment.plain(ahead=1))
        found = sizes | noise | {"product": _products(moment.gradient, after, groups)}
        found["after"] = _products(after, after, groups)
        # One copy to the host for the whole reading.
        columns = torch.stack(list(found.values())).tolist()
        rows = [dict(zip(found, values, strict=True)) for values in zip(*columns, strict=True)]
        *layers, whole = [_ratios(row, samples, self.batches) for row in rows]
        names = ("gradient_norm", "update_ratio", "cosine", "noise_scale")
        arrays = {name: tuple(layer[name] for layer in layers) for name in names}
        arrays["noise"] = whole["trace"], whole["signal"], samples
        scalars = {f"{name}_total": whole[name] for name in names} | {
            "depth_slope": depth_slope(arrays["gradient_norm"])
        }
        finite = {name: value for name, value in scalars.items() if isfinite(value)}
        return Reading(self.kind, moment.step, finite, arrays, tuple(groups)[:-1])

    def cost(self, model: nn.Module) -> float:  # noqa: ARG002
        """A step for each gradient but the step's own, one for the next step's, and what sums over them take."""
        return self.batches + 0.5


def depth_slope(norms: Sequence[float]) -> float:
    """The slope of the line of least squares through the logarithms of positive numbers, in decades per place.

    Places of other numbers stay empty; NaN where fewer than two are left.

    Example:
        >>> round(depth_slope([0.001, 0.01, 0.0, 1.0]), 9)
        1.0
    """
    points = [(place, log10(norm)) for place, norm in enumerate(norms) if norm > 0 and isfinite(norm)]
    if len(points) < 2:
        return nan
    middle, mean = (sum(column) / len(points) for column in zip(*points, strict=True))
    rise: float = sum((place - middle) * (value - mean) for place, value in points)
    run: float = sum((place - middle) ** 2 for place, _ in points)
    return rise / run


ALL = "*"
"""Stands for all parameters together, after the layers."""


def _groups(model: nn.Module) -> dict[str, list[int]]:
    """Places in `model.parameters()` of the weights of each layer, and of all parameters."""
    places = {id(parameter): place for place, parameter in enumerate(model.parameters())}
    layers = {path: [places[id(weight)] for weight in weights] for path, weights in weights_of(model).items()}
    return layers | {ALL: list(places.values())}


def _gradient(moment: Moment, replay: Replay) -> Gradient:
    """Of a plain loss at where the model stands."""
    parameters = list(moment.model.parameters())
    learned = [parameter for parameter in parameters if parameter.requires_grad]
    found = torch.autograd.grad(replay(), learned, allow_unused=True)
    moment.average([each for each in found if each is not None])
    by_parameter = {id(parameter): each for parameter, each in zip(learned, found, strict=True)}
    return [by_parameter.get(id(parameter)) for parameter in parameters]


def _noise(moment: Moment, batches: int, groups: Mapping[str, list[int]]) -> tuple[dict[str, Tensor], float]:
    """The mean squared norm of the batches' gradients and the squared norm of their mean, and the size of a batch."""
    total = [None if each is None else each.clone() for each in moment.gradient]
    squares, samples = _products(moment.gradient, moment.gradient, groups), nan
    for ahead in range(1, batches):
        with _counting(moment.model) as counted:
            gradient = _gradient(moment, moment.plain(ahead=ahead))
        samples = sum(counted) * moment.ranks.count or nan
        squares += _products(gradient, gradient, groups)
        with torch.no_grad():
            for place, each in enumerate(gradient):
                mine = total[place]
                total[place] = each if mine is None else mine if each is None else mine.add_(each)
    return {"square": squares / batches, "mean_square": _products(total, total, groups) / batches**2}, samples


def _sizes(moment: Moment, groups: Mapping[str, list[int]]) -> dict[str, Tensor]:
    """Squared norms of gradient, weights and update, of each group."""
    with torch.no_grad():
        moved = [after - before for after, before in zip(moment.updated, moment.origin, strict=True)]
    each = {"gradient": moment.gradient, "weight": moment.origin, "update": moved}
    return {name: _products(tensors, tensors, groups) for name, tensors in each.items()}


@torch.no_grad()
def _products(one: Gradient, other: Gradient, groups: Mapping[str, list[int]]) -> Tensor:
    """Inner products in float64, of each group."""
    products = [
        torch.zeros((), dtype=torch.float64) if a is None or b is None else (a.double() * b.double()).sum()
        for a, b in zip(one, other, strict=True)
    ]
    device = next((each.device for each in products if not each.is_cpu), None)
    of_parameters = torch.stack([each.to(device) for each in products])
    return torch.stack([of_parameters[places].sum() for places in groups.values()])


def _ratios(of: Mapping[str, float], samples: float, batches: int) -> dict[str, float]:
    """What is told of a group, from its inner products."""
    mean_square, square = of["mean_square"], of["square"]
    # In this order: what is not a number stays it.
    trace = max((square - mean_square) * batches / (batches - 1), 0.0)
    signal = mean_square - trace / batches
    lengths = sqrt(of["gradient"] * of["after"]) if isfinite(of["gradient"] * of["after"]) else nan
    return {
        "gradient_norm": sqrt(of["gradient"]),
        "update_ratio": sqrt(of["update"] / of["weight"]) if of["weight"] > 0 else nan,
        "cosine": of["product"] / lengths if lengths > 0 else nan,
        "noise_scale": samples * trace / signal if signal > 0 else nan,
        "trace": trace,
        "signal": signal,
    }


@contextmanager
def _counting(model: nn.Module) -> Iterator[list[int]]:
    """A scope in which the sizes of the batches that a model is given come to stand in a list."""
    sizes: list[int] = []

    def count(_: nn.Module, args: tuple[Any, ...]) -> None:
        if args and isinstance(args[0], Tensor) and args[0].dim():
            sizes.append(len(args[0]))

    handle = model.register_forward_pre_hook(count)
    try:
        yield sizes
    finally:
        handle.remove()
