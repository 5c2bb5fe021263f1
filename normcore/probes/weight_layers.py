"""The layers of a model that hold weights, in the order in which a forward pass comes by them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from normcore.noise.noise import Noise
from normcore.norms.norm import Norm
from normcore.refusal import Refusal

Layers = int | Literal["all"] | tuple[str, ...]
"""So many, evenly spread; all; or those at these module paths."""
TORCHS_NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.LocalResponseNorm),
)


@dataclass(frozen=True, slots=True, eq=False)
class WeightLayer:
    """A layer, and what comes before it and after it."""

    path: str
    weights: tuple[nn.Parameter, ...]
    """Its own: the learned tensors behind its weight, where that is parametrized."""
    preceding: tuple[int, ...]
    """Places, in `model.parameters()`, of all that a forward pass used before anything of this layer."""
    tap: nn.Module | None
    """Whose output is the layer's: the last norm or noise that runs between it and the next layer, and it by itself
    where there is none. None for a layer whose weights another module reads, so that nothing runs."""


def weights_of(model: nn.Module) -> dict[str, tuple[nn.Parameter, ...]]:
    """The weights of every layer that has some, by module path, in the order of `model.named_modules()`.

    A layer is a module, other than a norm, with learned parameters of its own that are named weight and have two or
    more dimensions: linear maps, convolutions, embeddings, recurrent cells. Of a parametrized weight it is what is
    learned in its place.

    Example:
        >>> list(weights_of(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))))
        ['0', '3']
    """
    found: dict[str, tuple[nn.Parameter, ...]] = {}
    norms = [path for path, module in model.named_modules() if isinstance(module, (Norm, *TORCHS_NORMS))]
    for path, module in model.named_modules():
        if any(path == norm or path.startswith(f"{norm}.") for norm in norms) or ".parametrizations." in f".{path}.":
            continue
        own = list(module.named_parameters(recurse=False))
        for name, function in getattr(module, "parametrizations", {}).items():
            own += [(f"{name}.{inner}", value) for inner, value in function.named_parameters(recurse=False)]
        if weights := tuple(
            value for name, value in own if "weight" in name and value.dim() >= 2 and value.requires_grad
        ):
            found[path] = weights
    return found


def check_layers(model: nn.Module, layers: Layers) -> None:
    """Raise `Refusal` (code `no-such-layer`) unless every path is that of a layer with weights."""
    known = list(weights_of(model))
    if isinstance(layers, tuple) and (unknown := [path for path in layers if path not in known]):
        raise Refusal(
            "no-such-layer",
            f"layers must be paths of modules with weights, got {unknown[0]!r}; this model has {', '.join(known)}",
        )


def chosen(order: Sequence[WeightLayer], layers: Layers) -> tuple[WeightLayer, ...]:
    """Those that are asked for, in the order of a forward pass.

    Of k layers, n evenly spread ones are the numbers i (k + 1) / (n + 1) to the nearest, counted from 1: of the 25 of a
    deep linear net 9 and 17, of the 14 of a VGG-16 5 and 10.
    """
    if isinstance(layers, tuple):
        return tuple(layer for layer in order if layer.path in layers)
    count = len(order)
    if layers == "all" or layers >= count:
        return tuple(order)
    numbers = [(2 * i * (count + 1) + layers + 1) // (2 * (layers + 1)) for i in range(1, layers + 1)]
    return tuple(order[number - 1] for number in numbers)


def in_forward_order(model: nn.Module, run: Callable[[], object]) -> tuple[WeightLayer, ...]:
    """The layers of a model that a forward pass uses, in the order in which it first does.

    What counts is where a parameter is first computed with, not where it is registered, nor whose `forward` it is: so
    the cell of an LSTM, which is called at every time step, stands where the first one is. A weight that two layers
    share belongs to the first of them.

    Args:
        model: Any module.
        run: Runs its forward pass, of which the first counts where there are several.
    """
    places = {id(parameter): place for place, parameter in enumerate(model.parameters())}
    with _recorded(model, places) as events, torch.no_grad():
        run()
    # Micro-batches pass through the model one after the other.
    events = events[: events.index(model) + 1] if model in events else events
    first: dict[int, int] = {}
    for time, event in enumerate(events):
        if isinstance(event, int):
            first.setdefault(event, time)
    weights, begun = weights_of(model), dict[str, int]()
    for path in weights:
        module = model.get_submodule(path)
        behind = getattr(module, "parametrizations", nn.ModuleDict())
        own = [*module.parameters(recurse=False), *behind.parameters()]
        if times := [first[places[id(parameter)]] for parameter in own if places[id(parameter)] in first]:
            begun[path] = min(times)
    # Layers that share a weight begin at the same time, and the first stands for both.
    order = sorted({time: path for path, time in reversed(begun.items())}.items())
    ends = [time for time, _ in order[1:]] + [len(events)]
    return tuple(
        WeightLayer(
            path,
            weights[path],
            tuple(sorted(place for place, used in first.items() if used < begin)),
            _tap(events[begin:end], model.get_submodule(path)),
        )
        for (begin, path), end in zip(order, ends, strict=True)
    )


def _tap(events: Sequence[int | nn.Module], layer: nn.Module) -> nn.Module | None:
    modules = [event for event in events if isinstance(event, nn.Module)]
    after = [module for module in modules if module is not layer and isinstance(module, (Norm, Noise, *TORCHS_NORMS))]
    return after[-1] if after else layer if layer in modules else None


@contextmanager
def _recorded(model: nn.Module, places: dict[int, int]) -> Iterator[list[int | nn.Module]]:
    """A scope in which all that happens comes to stand in a list: uses of parameters, as their places, and modules that
    have run.
    """
    events: list[int | nn.Module] = []

    def ran(module: nn.Module, *_: Any) -> None:
        events.append(module)

    handles: list[RemovableHandle] = [module.register_forward_hook(ran) for module in model.modules()]
    try:
        with _Uses(places, events):
            yield events
    finally:
        for handle in handles:
            handle.remove()


class _Uses(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes which parameters operations are given."""

    def __init__(self, places: dict[int, int], events: list[int | nn.Module]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._places, self._events = places, events

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = (value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor))
        self._events.extend(self._places[id(value)] for value in given if id(value) in self._places)
        return func(*args, **(kwargs or {}))
