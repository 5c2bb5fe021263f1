"""A model on a batch, beside another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from normcore.refusal import Refusal
from normcore.surgery.candidate import Candidate

Calibration = Tensor | tuple[Any, ...] | Iterable[Tensor | tuple[Any, ...]]
"""One batch; or the arguments of one call, as a tuple; or several of either, which are taken together as one batch."""


def arguments(calibration: Calibration) -> tuple[Any, ...]:
    """The arguments of the one call that a calibration stands for.

    Raises:
        Refusal: There is no batch or no sample, or a batch is a mapping.

    Example:
        >>> [tuple(t.shape) for t in arguments([torch.zeros(2, 3), torch.zeros(4, 3)])]
        [(6, 3)]
    """
    given = _together(calibration)
    first = given[0] if given else None
    if isinstance(first, Tensor) and first.dim() > 0 and len(first) == 0:
        raise Refusal(
            "no-calibration",
            "a calibration must hold at least one sample, got a batch of 0; hand in more, or none at all",
        )
    return given


def _together(calibration: Calibration) -> tuple[Any, ...]:
    if isinstance(calibration, Tensor):
        return (calibration,)
    if isinstance(calibration, tuple):
        return calibration
    several = [calibration] if isinstance(calibration, Mapping) else list(calibration)
    for batch in several:
        if isinstance(batch, Mapping):
            raise _not_by_name(batch)
    batches = [tuple(batch) if isinstance(batch, (tuple, list)) else (batch,) for batch in several]
    if not batches:
        raise Refusal(
            "no-calibration", "a calibration must hold at least one batch, got 0; hand in more, or none at all"
        )
    return tuple(torch.cat(parts) if isinstance(parts[0], Tensor) else parts[0] for parts in zip(*batches, strict=True))


def _not_by_name(batch: Mapping[str, Any]) -> Refusal:
    return Refusal(
        "no-calibration",
        f"a calibration must hold arguments by position, got a mapping of {', '.join(map(str, batch))}; hand in a "
        f"tuple of its values in the order in which the model takes them",
    )


def input_channels(model: nn.Module, batch: tuple[Any, ...], paths: Sequence[str]) -> dict[str, int]:
    """C of the first input of the modules at `paths`."""
    seen: dict[str, int] = {}

    def look(path: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            seen.setdefault(path, inputs[0].shape[1])

        return hook

    with hooked(model, {path: look(path) for path in paths}, before=True):
        run(model, batch)
    return seen


def run(model: nn.Module, batch: tuple[Any, ...]) -> list[Tensor]:
    """The tensors that a model gives for a batch in evaluation; its mode is put back."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad():
            result = model.eval()(*batch)
    finally:
        for module, training in modes:
            module.training = training
    return [leaf.detach().clone() for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


def errors(model: nn.Module, batch: tuple[Any, ...], candidates: Sequence[Candidate]) -> dict[str, float]:
    """How far every new layer is from the old one on the same input, by path: see `difference`."""
    found: dict[str, float] = {}

    def look(candidate: Candidate) -> Callable[..., None]:
        place = candidate.place()

        def hook(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            mine, theirs = run(place, inputs[:1]), output
            theirs = theirs.relu() if candidate.relu is not None else theirs
            mine = [t.relu() for t in mine] if candidate.gives_relu_back else mine
            found[candidate.path] = max(found.get(candidate.path, 0.0), difference([theirs], mine))

        return hook

    with hooked(model, {c.path: look(c) for c in candidates}, before=False):
        run(model, batch)
    return found


def difference(theirs: Sequence[Tensor], mine: Sequence[Tensor]) -> float:
    """The largest difference in the outputs, over the largest output; infinite where one of the two is not a number.

    Example:
        >>> difference([torch.tensor([2.0, torch.inf])], [torch.tensor([1.0, torch.inf])])
        0.5
    """
    pairs = [(a.double(), b.double()) for a, b in zip(theirs, mine, strict=True) if a.is_floating_point()]
    return max((_gap(a, b) for a, b in pairs if a.numel()), default=0.0)


def _gap(a: Tensor, b: Tensor) -> float:
    gap = torch.where(a == b, 0.0, (a - b).abs()).nan_to_num(nan=torch.inf, posinf=torch.inf)
    size = a.abs().where(a.isfinite(), 0.0).max().clamp(min=1e-300)
    return float(gap.max() / size)


@contextmanager
def hooked(model: nn.Module, hooks: Mapping[str, Callable[..., None]], *, before: bool) -> Iterator[None]:
    """The model with hooks by path, before or after the modules' forwards, as long as the context lasts."""
    handles = []
    for path, hook in hooks.items():
        module = model.get_submodule(path)
        handles.append(module.register_forward_pre_hook(hook) if before else module.register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
