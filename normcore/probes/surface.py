"""The loss of a step at other weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from normcore.menu.probe import BnMode
from normcore.probes.moment import Moment

FORWARD = 0.36
"""Training steps that a loss at other weights takes, by `benchmarks/probes.py` on a VGG-11."""


@torch.no_grad()
def losses_at(moment: Moment, places: Iterable[Sequence[Tensor]], *, bn_mode: BnMode = "batch") -> list[float]:
    """The loss of a moment's batch, with its noise, at other weights; forward passes alone.

    Args:
        moment: Whose model is moved; the caller puts it back, as `no_footprints` does.
        places: Parameters, in the order of `model.parameters()`, one place after the other.
        bn_mode: Statistics that layers with running ones normalize by: those of the batch at each place, or the running
            ones of the moment at all of them.
    """
    parameters: list[Tensor] = list(moment.model.parameters())
    losses: list[Tensor] = []
    with nullcontext(moment.replay) if bn_mode == "batch" else moment.function(bn_mode=bn_mode) as compute:
        for place in places:
            torch._foreach_copy_(parameters, list(place))
            loss = compute().detach().clone()
            if bn_mode == "frozen":
                # A plain loss is that of this device's rows.
                moment.average([loss])
            losses.append(loss)
    # One copy to the host for all places.
    values: list[float] = torch.stack(losses).tolist()
    return values
