"""Where a training left the finite numbers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


def first_nonfinite_layer(model: nn.Module, replay: Callable[[], object]) -> str | None:
    """The path of the first layer, in the order of the forward pass, whose parameters or output are not finite.

    Layers are the modules without children; a weight method is part of the layer it stands on. None where all are
    finite, as when only the loss overflows.

    Args:
        model: The model, as it was before the update that would have spread the damage to every parameter.
        replay: Runs its forward pass on the batch in question.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
        >>> _ = nn.init.constant_(model[1].weight, 3e38)
        >>> first_nonfinite_layer(model, lambda: model(torch.full((1, 2), 1e3)))
        '1'
    """
    found: list[str] = []
    handles = [
        module.register_forward_hook(partial(_look, found, path))
        for path, module in model.named_modules()
        if _is_layer(path, module)
    ]
    try:
        with torch.no_grad():
            replay()
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _is_layer(path: str, module: nn.Module) -> bool:
    own = "parametrizations"
    return own not in path.split(".") and all(name == own for name, _ in module.named_children())


def _look(found: list[str], path: str, module: nn.Module, _inputs: Any, output: Tensor) -> None:
    if not found and not all(bool(tensor.isfinite().all()) for tensor in (*module.parameters(), output)):
        found.append(path)
