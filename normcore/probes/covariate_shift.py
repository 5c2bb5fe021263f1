"""Internal covariate shift (Santurkar et al. 2018, arXiv:1805.11604, section 2.2 and definition 2.1)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from statistics import median
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from normcore.probes.channel_taps import ChannelTap, tapped
from normcore.probes.moment import Moment, Replay
from normcore.probes.probe import Sees
from normcore.probes.weight_layers import Layers, WeightLayer, check_layers, chosen, in_forward_order, weights_of
from normcore.records import Reading

ARRAYS = ("l2", "cosine", "gradient_norm", "mean", "var", "mean_drift", "var_drift")
SUMMARIES = {"l2": ("max", "median"), "cosine": ("min", "median"), "mean_drift": ("median",), "var_drift": ("median",)}
SUMMARY: dict[str, Callable[[list[float]], float]] = {"max": max, "min": min, "median": median}


@dataclass(frozen=True, kw_only=True, slots=True)
class CovariateShiftProbe:
    """How much a layer's gradient changes because the layers before it were updated, and how its activations moved.

    With W_i the weight of layer i and theta^t all parameters at step t, on the batch, noise and dropout of step t, in
    training mode,

        G_i  = grad_{W_i} L(theta^t)
        G'_i = grad_{W_i} L(theta^{t+1} of all that precedes layer i, theta^t of layer i and of all behind it)

    A layer is a module with a weight: a linear map, a convolution, an embedding, a recurrent cell; where the weight is
    parametrized, G_i is the gradient of what is learned in its place. What precedes it are the parameters, gammas and
    betas and biases included, that the forward pass of theta^t uses before the layer; the norm right behind a layer
    does not precede it; of branches side by side those that run first precede the others. Buffers stay where they are.
    Arrays, a value per chosen layer:

    - `l2`, ||G_i - G'_i||_2, and `cosine`, that of the angle between them: without any shift 0 and 1, as for the first
      layer always. The cosine of a gradient that is zero is NaN;
    - `gradient_norm`, ||G_i||_2.

    The drift of distributions (the paper's figure 8) is that of the layer's activations behind its norm and noise: the
    output of the last norm or noise between the layer and the next one, or of the layer itself where there is none.
    With mu and sigma^2 mean and (biased) variance of a channel over the batch and its pixels or tokens, padding left
    out:

    - `mean` and `var`, the averages over the channels of mu_t and of sigma^2_t;
    - `mean_drift` and `var_drift`, the averages over the channels of |mu_{t+1} - mu_t| and |sigma^2_{t+1} - sigma^2_t|.

    mu_{t+1} is that of theta^{t+1} on the *same* batch, so that what differs between batches is no drift, but with the
    noise of step t+1: noise that is drawn anew at every step is the very shift that the paper puts in. So batch norm
    shows nothing but its gammas' and betas' updates, and with Santurkar's noise on it mean_drift is 2/3 `mean_range`.
    Asked by hand (`normcore.probes.look`), the noise is that of the loss one gives, twice the same. A change that could
    be rounding, of less than four eps times the root mean square of the channel (squared, of a variance), counts as 0:
    behind batch norm a channel whose beta stands still has a mean that stands still.

    Scalars, over the chosen layers that something precedes: `l2_max`, `l2_median`, `cosine_min`, `cosine_median`; over
    all chosen: `mean_drift_median` and `var_drift_median`; finite values only.

    Costs a forward and backward pass, another for each chosen layer (the backward pass only down to it), two forward
    passes, and copies of parameters and of the chosen weights' gradients.

    Args:
        layers: How many layers, evenly spread over the depth; or all; or the module paths of some.
        precision: What is computed in: as the training does, or in float64, where small shifts do not drown in
            rounding.

    Raises:
        Refusal: There is no such layer.

    Example:
        >>> from normcore.probes.look import look
        >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
        >>> _ = [nn.init.constant_(layer.weight, value) for layer, value in zip(model, (2.0, 1.0))]
        >>> x = torch.ones(1, 1, dtype=torch.float64)
        >>> updated = [torch.full((1, 1), value, dtype=torch.float64) for value in (3.0, 5.0)]
        >>> reading = look(CovariateShiftProbe(layers="all"), model, lambda: model(x).sum(), lr=0.1, updated=updated)
        >>> reading.layers, reading.arrays["gradient_norm"], reading.arrays["l2"]
        (('0', '1'), (1.0, 2.0), (0.0, 1.0))
    """

    kind: ClassVar[str] = "covariate_shift"
    sees: ClassVar[Sees] = "update"
    evaluates: ClassVar[bool] = False

    layers: Layers = 5
    precision: Literal["training", "float64"] = "training"

    def read(self, moment: Moment) -> Reading:
        """Measure after an update, from the weights before it."""
        model = moment.model
        self.check(model)
        with moment.function(precision=self.precision) as loss:
            order = chosen(in_forward_order(model, loss), self.layers)
            taps = [layer.tap for layer in order]
            with tapped(model, taps, moment.average) as before:
                gradients = _gradients(moment, loss, order)
            shifts = list(_shifts(moment, loss, order, gradients))
            _move(moment, range(len(moment.updated)))
            # The same batch, whose noise is the next step's.
            later = moment.plain(noise_ahead=1, dtype=torch.float64 if self.precision == "float64" else None)
            with tapped(model, taps, moment.average) as after, torch.no_grad():
                later()
        drifts = [_drift(*pair, like=shift) for *pair, shift in zip(before, after, shifts, strict=True)]
        # One copy to the host for the whole reading.
        rows: list[list[float]] = [] if not order else torch.cat([torch.stack(shifts), torch.stack(drifts)], 1).tolist()
        arrays = {name: tuple(row[column] for row in rows) for column, name in enumerate(ARRAYS)}
        follows = [bool(layer.preceding) for layer in order]
        paths = tuple(layer.path for layer in order)
        facts = {"precision": self.precision}
        return Reading(self.kind, moment.step, _scalars(arrays, follows), arrays, paths, facts)

    def check(self, model: nn.Module) -> None:
        """Raise `Refusal` where a model has no such layer."""
        check_layers(model, self.layers)

    def cost(self, model: nn.Module) -> float:
        """Measured on a VGG: a step and a third, and seven tenths of one for each layer."""
        match self.layers:
            case int(count):
                pass
            case "all":
                count = len(weights_of(model))
            case paths:
                count = len(paths)
        return 1.3 + 0.7 * count


def _gradients(moment: Moment, loss: Replay, order: Sequence[WeightLayer]) -> list[Tensor]:
    """Those of the layers' weights, one vector a layer."""
    weights = [weight for layer in order for weight in layer.weights]
    found = torch.autograd.grad(loss(), weights, allow_unused=True, materialize_grads=True) if weights else ()
    given = iter(found)
    vectors = [torch.cat([next(given).flatten() for _ in layer.weights]) for layer in order]
    moment.average(vectors)
    return vectors


def _shifts(
    moment: Moment, loss: Replay, order: Sequence[WeightLayer], gradients: Sequence[Tensor]
) -> Iterator[Tensor]:
    """l2, cosine and gradient norm of each layer, in float64; the model is left with some parameters moved on."""
    moved: set[int] = set()
    for layer, gradient in zip(order, gradients, strict=True):
        g = gradient.double()
        if not layer.preceding:
            yield torch.stack([g.new_zeros(()), g.new_ones(()), g.norm()])
            continue
        # A layer's predecessors precede those behind it too.
        _move(moment, set(layer.preceding) - moved)
        moved |= set(layer.preceding)
        (shifted,) = _gradients(moment, loss, [layer])
        h = shifted.double()
        cosine = ((g / g.norm()) @ (h / h.norm())).clamp(-1, 1)
        yield torch.stack([(g - h).norm(), cosine, g.norm()])


def _move(moment: Moment, places: Iterable[int]) -> None:
    """Set parameters, named by their places, to what the update makes of them."""
    parameters = list(moment.model.parameters())
    with torch.no_grad():
        for place in places:
            parameters[place].copy_(moment.updated[place])


def _drift(before: ChannelTap, after: ChannelTap, *, like: Tensor) -> Tensor:
    """mean, var, mean_drift and var_drift of a layer, each an average over its channels."""
    old, new = before.mean_and_var(), after.mean_and_var()
    if old is None or new is None:
        return like.new_full((4,), nan)
    (mean, var), (new_mean, new_var) = old, new
    square = var + mean.square()
    told = 4 * before.eps * torch.where(square.isfinite(), square, 0)
    moved = _beyond((new_mean - mean).abs(), told / square.sqrt()), _beyond((new_var - var).abs(), told)
    return torch.stack([each.mean() for each in (mean, var, *moved)])


def _beyond(change: Tensor, least: Tensor) -> Tensor:
    """A change, and zero where it is less than what can be told; what is not finite stays."""
    return torch.where(change < least, 0, change)


def _scalars(arrays: Mapping[str, tuple[float, ...]], follows: Sequence[bool]) -> dict[str, float]:
    scalars: dict[str, float] = {}
    for name, summaries in SUMMARIES.items():
        of_shift = name in {"l2", "cosine"}
        pairs = zip(arrays[name], follows, strict=True)
        finite = [value for value, counts in pairs if isfinite(value) and (counts or not of_shift)]
        if finite:
            scalars |= {f"{name}_{summary}": float(SUMMARY[summary](finite)) for summary in summaries}
    return scalars
