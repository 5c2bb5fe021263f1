"""Training on with the statistics of evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from torch import nn
from torch.utils.hooks import RemovableHandle

from normcore.statistics.layers import has_running_statistics


@dataclass(frozen=True, slots=True)
class Frozen:
    """Frozen statistics, until they are thawed; as a scope, until its end."""

    layers: tuple[str, ...]
    """The paths of the layers whose statistics are frozen."""
    handles: tuple[RemovableHandle, ...]

    def thaw(self) -> None:
        """Let the layers do again as their mode says."""
        for handle in self.handles:
            handle.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.thaw()


def freeze_statistics(model: nn.Module) -> Frozen:
    """Let every layer with running statistics normalize by them in training too, and move them no more.

    As in evaluation a layer then is a fixed scale and shift per channel, and a sample no longer depends on the others
    of its batch; gamma and beta still learn. It is how detectors are fine-tuned with a sample or two per batch. Other
    than putting the layers into evaluation mode it outlives `model.train()`: what decides is not the mode.

    Args:
        model: Any module. A copy or a pickle of it is frozen too, and for good.

    Returns:
        What thaws it.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.BatchNorm1d(2)).train()
        >>> with freeze_statistics(model):
        ...     y = model(torch.full((1, 2), 3.0))
        >>> bool((y - 3).abs().max() < 1e-4), int(model[0].num_batches_tracked)
        (True, 0)
    """
    layers = {path: module for path, module in model.named_modules() if has_running_statistics(module)}
    handles: list[RemovableHandle] = []
    for module in layers.values():
        evaluation = _Evaluation()
        handles.append(module.register_forward_pre_hook(evaluation.enter, prepend=True))
        handles.append(module.register_forward_hook(evaluation.leave, always_call=True))
    return Frozen(tuple(layers), tuple(handles))


class _Evaluation:
    """The evaluation mode of a layer for the time of a forward pass."""

    def __init__(self) -> None:
        self.before: list[bool] = []

    def enter(self, module: nn.Module, _: tuple[Any, ...]) -> None:
        self.before.append(module.training)
        module.training = False

    def leave(self, module: nn.Module, _: tuple[Any, ...], __: Any) -> None:
        module.training = self.before.pop()
