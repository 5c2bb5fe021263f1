"""Where the non-linearities of a model are, and what they are given and give while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import nan
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from normcore.norms.norm import Norm
from normcore.probes.tally import Tally
from normcore.recurrent.cell import Cell

NONLINEARITIES = (
    nn.ReLU, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Softsign,
    nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish,
)  # fmt: skip
"""Modules that change each value by itself and learn nothing."""
RECTIFIERS = (nn.ReLU, nn.ReLU6)
"""Of which a channel can be dead."""
LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
GATES = ("i", "f", "g", "o")


@dataclass(eq=False)
class Place:
    """A non-linearity, or what is looked at in the place of one."""

    tally: Tally
    """Of what it is given, `(rows, C)`."""
    alive: Tensor | None = None
    """`(C,)`, whether a rectifier's channel has been anything but what it gives at its least."""

    def watch_output(self, rows: Tensor, floor: Tensor | float) -> None:
        """Look at what a rectifier gives.

        Args:
            rows: `(N, C)`.
            floor: The least it can give.
        """
        alive = (rows != floor).any(0)
        if self.alive is None:
            self.alive = alive
        elif len(alive) == len(self.alive):
            self.alive = self.alive | alive

    def dead(self, average: Callable[[list[Tensor]], None]) -> float:
        """The share of channels that gave nothing but the least on all devices; NaN where none can be dead.

        Args:
            average: Replaces tensors by their means over the devices, in place.
        """
        if self.alive is None:
            return nan
        shares = self.alive.double()
        average([shares])
        return float((shares == 0).double().mean())


@dataclass(eq=False)
class Watched:
    """A model that is being watched."""

    places: dict[str, Place] = field(default_factory=dict)
    """By the path of their module, in the order of `model.named_modules()`; the five of an LSTM's cell by the cell's
    path and `i`, `f`, `g`, `o` and `c`."""
    channels_last: bool = False
    """Whether the map that ran last is linear, with its channels in the last dimension, or a convolution."""
    mask: Tensor | None = None
    """The model's, `(N, L)`, True where a token is real."""

    def rows(self, x: Tensor) -> Tensor:
        """Real values `(rows, C)` of an activation `(N, C, *)`, or `(N, *, C)` behind a linear map."""
        last = x if self.channels_last or x.dim() < 3 else x.movedim(1, -1)
        if self.mask is not None and last.shape[:-1] == self.mask.shape:
            return last[self.mask]
        return last.reshape(-1, last.shape[-1])


@contextmanager
def watched(model: nn.Module) -> Iterator[Watched]:
    """A scope in which runs of a model are watched at its non-linearities, however many runs there are.

    - A module that is one (`NONLINEARITIES`): what it is given.
    - A norm that holds its own: what it gives, since what stands before its non-linearity is nowhere to be seen; the
      thresholded linear unit of a filter response norm counts as a rectifier that ends at tau.
    - The cell of an LSTM: what its gates i, f, o and its candidate g are given, and c on its way to the output.
    - In a model with none of these: what each linear map and convolution gives.

    Values of padding are left out where the model is given a mask.

    Args:
        model: Any module.
    """
    seen = Watched()
    handles = [model.register_forward_pre_hook(_Mask(seen), with_kwargs=True, prepend=True)]
    modules = dict(model.named_modules())
    for path, module in modules.items():
        if isinstance(module, NONLINEARITIES):
            handles += _watch_nonlinearity(seen, path, module)
        elif isinstance(module, Norm) and module.activates:
            handles.append(_watch_norm(seen, path, module))
        elif isinstance(module, Cell):
            handles += _watch_cell(seen, path, module)
    alone = not seen.places
    for path, module in modules.items():
        if isinstance(module, LINEAR):
            place = seen.places.setdefault(path, Place(Tally())) if alone else None
            handles.append(module.register_forward_hook(_Linear(seen, place)))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@dataclass(eq=False)
class _Mask:
    """Keeps the mask that a model is given."""

    seen: Watched

    def __call__(self, _: nn.Module, __: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.seen.mask = kwargs.get("mask")


@dataclass(eq=False)
class _Linear:
    """Keeps where the channels are, and looks at what a map gives where there is nothing else to look at."""

    seen: Watched
    place: Place | None

    def __call__(self, module: nn.Module, _: Any, output: Tensor) -> None:
        self.seen.channels_last = isinstance(module, nn.Linear)
        if self.place is not None:
            self.place.tally.take(self.seen.rows(output))


def _watch_nonlinearity(seen: Watched, path: str, module: nn.Module) -> list[RemovableHandle]:
    place = seen.places[path] = Place(Tally(_slope(module.forward)))

    def before(_: nn.Module, args: tuple[Any, ...]) -> None:
        place.tally.take(seen.rows(args[0]))

    def after(_: nn.Module, __: Any, output: Tensor) -> None:
        place.watch_output(seen.rows(output), 0.0)

    handles = [module.register_forward_pre_hook(before)]
    if isinstance(module, RECTIFIERS):
        handles.append(module.register_forward_hook(after))
    return handles


def _watch_norm(seen: Watched, path: str, norm: Norm) -> RemovableHandle:
    place, tau = seen.places.setdefault(path, Place(Tally())), getattr(norm, "tau", None)

    def after(_: nn.Module, __: Any, output: Tensor) -> None:
        # A norm has its channels in dimension 1.
        rows = output.movedim(1, -1).reshape(-1, output.shape[1])
        place.tally.take(rows)
        if tau is not None:
            place.watch_output(rows, tau.detach().to(rows.dtype))

    return norm.register_forward_hook(after)


def _watch_cell(seen: Watched, path: str, cell: Cell) -> list[RemovableHandle]:
    sigmoid, tanh = _slope(torch.sigmoid), _slope(torch.tanh)
    names = [f"{path}.{name}".lstrip(".") for name in (*GATES, "c")]
    for name, slope in zip(names, (sigmoid, sigmoid, tanh, sigmoid, tanh), strict=True):
        seen.places[name] = Place(Tally(slope))
    terms: list[Any] = [None, 0]

    def inputs(_: nn.Module, __: Any, kwargs: dict[str, Any], output: Tensor) -> None:
        terms[:] = output + cell.bias, kwargs["time"]

    def take(name: str, values: Tensor, real: Tensor | None) -> None:
        rows = values.reshape(-1, values.shape[-1])
        seen.places[name].tally.take(rows if real is None else rows[real.reshape(-1)])

    def states(_: nn.Module, __: Any, kwargs: dict[str, Any], output: Tensor) -> None:
        gates = output[:, 0] + terms[0][:, kwargs["time"] - terms[1]]
        for name, gate in zip(names, gates.chunk(4, 1), strict=False):
            take(name, gate, kwargs["real"])

    def cells(_: nn.Module, __: Any, kwargs: dict[str, Any], output: Tensor) -> None:
        take(names[-1], output, kwargs["real"])

    watching = ((cell.norm_x, inputs), (cell.norm_h, states), (cell.norm_c, cells))
    return [norm.register_forward_hook(hook, with_kwargs=True) for norm, hook in watching]


def _slope(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The derivative of an elementwise function over its largest, which is looked for between -8 and 8."""

    def derivative(x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            # A copy, since some functions work in place.
            (slope,) = torch.autograd.grad(function(x.clone()).sum(), x)
        return slope

    largest = derivative(torch.linspace(-8, 8, 1601, dtype=torch.float64)).abs().max().item()
    return lambda x: derivative(x) / largest
