"""What every noise owes: one shape in, the same shape out, and the same step draws the same noise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from torch import nn

from normcore.seeds import stream_seed


class Noise(nn.Module):
    """A layer that disturbs its input in training, `(N, C, *)` to `(N, C, *)`, and is the identity in evaluation.

    A noise keeps no generator. It keeps the seed of its current step, and each forward pass draws from a fresh
    generator at that seed: passes of the same step see the same noise, whatever was computed between them, so a probe
    may replay a step; a copy of the model draws what the model draws; and neither the global generators nor those of
    other layers ever move.
    """

    num_features: int
    """C, the channels."""

    step_seed: int | None = None
    """Where this step's draws begin; set by `start_step`."""

    draws: ClassVar[bool] = True
    """Whether there is anything to draw."""


def start_step(model: nn.Module, seed: int, step: int) -> None:
    """Let every noise layer of a model draw the noise of a step.

    Layer number i, in the order of `model.modules()`, draws from the stream `(seed, "noise", i, step)`. To be called
    before the forward passes of a training step; evaluation needs no call. Costs well under a microsecond per module
    and about two per noise layer.

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
    for index, layer in enumerate(_noises(model)):
        if layer.draws:
            layer.step_seed = stream_seed(seed, "noise", index, step)


def _noises(module: nn.Module) -> Iterator[Noise]:
    # `modules()` also guards against modules that are used twice, at several times this cost; setting a seed twice is
    # harmless, and the index still counts the same places in every arm.
    if isinstance(module, Noise):
        yield module
    for child in module._modules.values():  # noqa: SLF001
        if child is not None:
            yield from _noises(child)
