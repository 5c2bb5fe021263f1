"""What every layer that draws random numbers owes: the same step draws the same numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from torch import nn

from normcore.seeds import stream_seed


class Drawing(nn.Module):
    """A layer that draws random numbers in training and is the identity in evaluation.

    It keeps no generator. It keeps the seed of its current step, and each forward pass draws from a fresh
    generator at that seed: passes of the same step see the same noise, whatever was computed between them, so a probe
    may replay a step; a copy of the model draws what the model draws; and neither the global generators nor those of
    other layers ever move.
    """

    stream: ClassVar[str]
    """The name of its stream, so that layers of one kind leave those of another alone."""

    step_seed: int | None = None
    """Where this step's draws begin; set by `start_step`."""

    draws: ClassVar[bool] = True
    """Whether there is anything to draw."""


class Noise(Drawing):
    """A layer that disturbs its input in training, `(N, C, *)` to `(N, C, *)`."""

    stream: ClassVar[str] = "noise"

    num_features: int
    """C, the channels."""


def start_step(model: nn.Module, seed: int, step: int) -> None:
    """Let every layer of a model that draws, noise and dropout, draw the numbers of a step.

    Layer number i among those of its stream, in the order of `model.modules()`, draws from `(seed, stream, i, step)`,
    such as `(seed, "noise", 3, 17)`. To be called before the forward passes of a training step; evaluation needs no
    call. Costs well under a microsecond per module and about two per layer that draws.

    Args:
        model: Any module; it need not hold noise.
        seed: The job's seed.
        step: Optimizer updates done so far.

    Example:
        >>> import torch
        >>> from normcore.noise.santurkar import SanturkarNoise
        >>> noise, x = SanturkarNoise(3), torch.ones(2, 3)
        >>> start_step(noise, seed=0, step=5)
        >>> bool((noise(x) == noise(x)).all())
        True
    """
    counts: dict[str, int] = {}
    for layer in _drawing(model):
        index = counts[layer.stream] = counts.get(layer.stream, -1) + 1
        if layer.draws:
            layer.step_seed = stream_seed(seed, layer.stream, index, step)


def _drawing(module: nn.Module) -> Iterator[Drawing]:
    # `modules()` also guards against modules that are used twice, at several times this cost; setting a seed twice is
    # harmless, and the index still counts the same places in every arm.
    if isinstance(module, Drawing):
        yield module
    for child in module._modules.values():  # noqa: SLF001
        if child is not None:
            yield from _drawing(child)
