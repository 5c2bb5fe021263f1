"""A probe asked by hand, as in a notebook."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from normcore.probes.footprints import no_footprints
from normcore.probes.moment import Moment, Replay
from normcore.probes.probe import Probe
from normcore.records import Reading


def look(
    probe: Probe,
    model: nn.Module,
    loss: Replay,
    *,
    lr: float,
    step: int = 1,
    seed: int = 0,
    updated: Sequence[Tensor] = (),
) -> Reading:
    """What a probe sees of a model that no job trains; the model is left as it was found, bit for bit.

    Args:
        probe: One that needs no job.
        model: In the mode it trains in.
        loss: Computes the training loss by running the model, each time with the same batch, noise and dropout.
        lr: Of the update that would follow.
        step: Its number.
        seed: Of what the probe draws.
        updated: The parameters after the update, in the order of `model.parameters()`; those after a step of plain
            gradient descent when not given.

    Example:
        >>> from normcore.probes.landscape import LandscapeProbe
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(model.weight, 3.0)
        >>> probe = LandscapeProbe(low=0.5, high=1.5, points=3)
        >>> look(probe, model, lambda: 4.0 * model(torch.ones(1)).square().sum(), lr=0.125).arrays["loss"]
        (9.0, 0.0, 9.0)
    """

    def plain(ahead: int = 0, dtype: torch.dtype | None = None, noise_ahead: int = 0) -> Replay:  # noqa: ARG001
        return loss

    with no_footprints(model) as origin:
        parameters = list(model.parameters())
        buffers = [buffer.clone() for buffer in model.buffers()]
        learned = [parameter for parameter in parameters if parameter.requires_grad]
        found = dict(zip(learned, torch.autograd.grad(loss(), learned, allow_unused=True), strict=True))
        gradient = tuple(found.get(parameter) for parameter in parameters)
        with torch.no_grad():
            for buffer, value in zip(model.buffers(), buffers, strict=True):
                buffer.copy_(value)
        if not updated:
            steps = zip(origin, gradient, strict=True)
            updated = [start if slope is None else start - lr * slope for start, slope in steps]
        moment = Moment(step, lr, model, loss, plain, tuple(origin), gradient, tuple(updated), seed)
        return probe.read(moment)
