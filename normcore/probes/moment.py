"""What a probe is given: a model at one step of its training, and the loss of that step as often as it likes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor, nn

from normcore.menu.probe import BnMode
from normcore.ranks import ALONE, Ranks
from normcore.seeds import generator
from normcore.statistics.freeze import freeze_statistics
from normcore.statistics.layers import has_running_statistics

if TYPE_CHECKING:
    from normcore.learner import Learner

Replay = Callable[[], Tensor]
"""Computes a training loss once more: the same batch, the same noise and dropout, layers in the mode they train in."""


class Plain(Protocol):
    """Where replays come from that are one graph of eager operations."""

    def __call__(self, ahead: int = 0, dtype: torch.dtype | None = None, noise_ahead: int = 0) -> Replay:
        """The loss of the step that is `ahead` of this one, with its own batch and noise.

        Args:
            ahead: Steps from this one.
            dtype: What to compute in, without autocast, where the model has that dtype; else as the training does.
            noise_ahead: How many steps the noise and dropout are ahead of that batch.
        """
        ...


@dataclass(frozen=True, slots=True)
class Moment:
    """A step of a training as a probe sees it.

    The model stands at the weights *before* the step's update (at the end of a training: at the last ones), in
    training mode, its parameters' `.grad` None. What a probe changes is put back after it. `normcore.probes.look` makes
    one of any model.
    """

    step: int
    """The number of the update, the first being 1."""
    lr: float
    """What the update uses."""
    model: nn.Module
    replay: Replay
    """The loss of this step as the training computes it (compiled, in micro-batches), whose backward pass leaves the
    gradients of the whole batch of all devices in the parameters' `.grad`. There are no second derivatives of it."""
    plain: Plain
    """Losses as plain graphs, which hooks see and which may be differentiated twice, by `torch.autograd.grad` too. On
    several devices such a loss is that of this device's rows, scaled so that the `average` of its gradients over the
    devices is the gradient of the whole."""
    origin: tuple[Tensor, ...]
    """Copies of the parameters at which the model stands, in the order of `model.parameters()`; not to be changed."""
    gradient: tuple[Tensor | None, ...] = ()
    """The gradient of the step's loss, likewise, before any clipping; None for a parameter that has none. Nothing at
    the end of a training."""
    updated: tuple[Tensor, ...] = ()
    """The parameters after the update, likewise, for a probe that sees updates."""
    seed: int = 0
    ranks: Ranks = ALONE
    anew: Callable[[], Learner] | None = None
    """Makes another learner of the same job, at its initial weights; None where there is no job."""
    others: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    """Last weights of other jobs, as state dicts on the CPU, by the jobs' ids; those that could be had."""

    @contextmanager
    def function(
        self, *, bn_mode: BnMode = "batch", precision: Literal["training", "float64"] = "training"
    ) -> Iterator[Replay]:
        """A scope in which the loss is the function asked for, as a plain graph.

        With `bn_mode` frozen, layers with running statistics normalize by these as they stand at this moment: another
        function, with another gradient, than the one that trains. On several devices these are the first one's, which
        evaluations and checkpoints use.
        """
        if bn_mode == "frozen":
            layers = [module for module in self.model.modules() if has_running_statistics(module)]
            self.ranks.follow([buffer for layer in layers for buffer in layer.buffers()])
        with freeze_statistics(self.model) if bn_mode == "frozen" else nullcontext():
            if precision == "float64":
                with _in_float64(self.model):
                    yield self.plain(dtype=torch.float64)
            else:
                yield self.plain()

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace values of this device's rows by their mean over the devices, in place."""
        self.ranks.average(list(tensors))

    def generator(self, *names: str | int) -> torch.Generator:
        """A generator on the CPU at the start of a stream for this step and these names, the same on all devices."""
        return generator("cpu", self.seed, "probe", *names, self.step)


@contextmanager
def _in_float64(model: nn.Module) -> Iterator[None]:
    """A scope in which parameters and buffers are float64; then they are the tensors they were before."""
    parameters = [(parameter, parameter.data) for parameter in model.parameters()]
    buffers = [(module._buffers, dict(module._buffers)) for module in model.modules()]  # noqa: SLF001
    try:
        model.double()
        yield
    finally:
        for parameter, data in parameters:
            parameter.grad = None
            parameter.data = data
        for kept, own in buffers:
            kept.update(own)
