"""What every weight method owes: from the weight that is learned to the weight that is used, of the same shape."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn.utils import parametrize

from normcore.norms.norm import at_least_float32
from normcore.recurrent.cell import Cell
from normcore.refusal import Refusal


class Reparametrization(nn.Module):
    """A function of a layer's weight, `(out, in, *)` to `(out, in, *)`, that the layer uses in the weight's place.

    It stands on a layer as torch's own parametrizations do: the learned weight becomes
    `layer.parametrizations.weight.original` and keeps its values, and `layer.weight` is the function of it, worked out
    anew in every forward pass, in float32 or better, and differentiated through. What the function learns besides (a
    gain per output unit) stands in this module, and weight decay leaves it alone. It is the same in training and
    evaluation; `torch.nn.utils.parametrize.remove_parametrizations` leaves a plain layer that computes the same.
    """

    def reparametrize(self, weight: Tensor) -> Tensor:
        """The function itself, of a weight in float32 or better."""
        raise NotImplementedError

    def forward(self, weight: Tensor) -> Tensor:
        """The weight to use, in the dtype and memory format of the weight that is learned."""
        return self.reparametrize(weight.to(at_least_float32(weight.dtype))).to(weight.dtype)


def maps(model: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
    """The layers of a model that a weight method works on, by path: every linear map but its `classifier`.

    Example:
        >>> list(maps(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Conv2d(1, 1, 1))))
        ['0', '2']
    """
    classifier = getattr(model, "classifier", None)
    return {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and module is not classifier
    }


def reparametrize(model: nn.Module, make: Callable[[Tensor], Reparametrization]) -> None:
    """Put a reparametrization on the weight of each of a model's maps.

    Args:
        model: Its values are drawn: arms share them, whatever becomes of them afterwards.
        make: Makes the reparametrization of a weight.

    Raises:
        Refusal: The method cannot work on a layer, which is named.
    """
    check_no_cell(model)
    for path, layer in maps(model).items():
        try:
            parametrize.register_parametrization(layer, "weight", make(layer.weight))
        except Refusal as refusal:
            raise Refusal(refusal.code, str(refusal), layer=path) from None


def per_unit(values: Tensor, weight: Tensor) -> Tensor:
    """One value per output unit, shaped so that it multiplies the unit's weights."""
    return values.view(-1, *[1] * (weight.dim() - 1))


def inputs_of(weight: Tensor) -> tuple[int, ...]:
    """The dimensions that an output unit's weights lie in: all but the first."""
    return tuple(range(1, weight.dim()))


def check_no_cell(model: nn.Module) -> None:
    """Raise `Refusal` (code `weights-in-cell`) where a model keeps its weights in the cell of an LSTM."""
    for path, module in model.named_modules():
        if isinstance(module, Cell):
            raise Refusal(
                "weights-in-cell",
                "a weight method works on linear maps and convolutions, got the cell of an LSTM, which uses the same "
                "weights at every time step; take weight none, or another model",
                layer=path,
            )


def check_fan_in(weight: Tensor, method: str) -> None:
    """Raise `Refusal` (code `fan-in-of-one`) where an output unit has a single weight, which is its own mean."""
    if weight[0].numel() == 1:
        raise Refusal(
            "fan-in-of-one",
            f"{method} needs more than one weight in an output unit, got a weight of shape {tuple(weight.shape)}; "
            f"take wider layers or another weight method",
        )
