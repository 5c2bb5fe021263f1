"""Eps: where it stands and how large it is, measured from outputs."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from normcore.certificate.check import Check, NotTried, Observation
from normcore.certificate.conventions import variance
from normcore.certificate.design import design
from normcore.certificate.trial import VAST, Trial, odd_part
from normcore.norms.claims import Claims


def _eps(trial: Trial) -> Observation:
    """Where eps stands, from the order in which it ceases to count as inputs grow: the second inside the root."""
    if (scale := _telling_scale(trial)) is None:
        return Observation("none")
    order = math.log2(_shortfall(trial, scale) / _shortfall(trial, 2 * scale))
    place = "inside" if abs(order - 2) < 0.05 else "outside" if abs(order - 1) < 0.05 else "neither"
    return Observation(place, abs(order - (2 if place == "inside" else 1)), 0.05)


def _eps_value(trial: Trial) -> Observation:
    """From how far outputs at inputs of variance one fall short of those at vast ones."""
    if (scale := _telling_scale(trial)) is None:
        raise NotTried("no eps is to be seen")
    channels = _shortfalls(trial, scale).transpose(0, 1).flatten(1)
    if _differ(channels):
        if not any(_differ(channel) for channel in channels):
            return Observation("another in each channel")
        raise NotTried("eps takes another share of one value than of the next")
    short = float(channels.nanmedian())
    inside = abs(math.log2(short / _shortfall(trial, 2 * scale)) - 2) < 0.05
    eps = 2 * scale**2 * short if inside else scale * short
    # Where eps is as large as what it is added to.
    short, known = (_shortfall(trial, math.sqrt(eps)), 1 - math.sqrt(0.5)) if inside else (_shortfall(trial, eps), 0.5)
    if abs(short - known) > 1e-3:
        raise NotTried("eps stands in more places than one")
    if variance(trial).observed == "unbiased":
        # The variance is not one, but what the outputs end at says.
        limit = float(odd_part(trial.copy(), VAST * design(trial)).square().mean())
        eps /= limit if inside else math.sqrt(limit)
    return Observation(f"{eps:.3g}")


def _telling_scale(trial: Trial) -> float | None:
    """A scale of inputs at which eps takes about a hundred thousandth of the output; none where there is no such."""
    if trial.reach.statistics == "none":
        raise NotTried("there are no statistics")
    layer, x = trial.copy(), design(trial)
    if not torch.allclose(odd_part(layer, VAST * x), odd_part(layer, 100 * VAST * x), rtol=1e-6):
        raise NotTried("outputs have no limit as inputs grow")
    for step in range(12, -17, -1):
        if _shortfall(trial, scale := 10 ** (step / 2)) > 1e-5:
            return scale
    return None


def _shortfall(trial: Trial, scale: float) -> float:
    return float(_shortfalls(trial, scale).nanmedian())


def _shortfalls(trial: Trial, scale: float) -> Tensor:
    layer, x = trial.copy(), design(trial)
    ratio = odd_part(layer, scale * x) / odd_part(layer, VAST * x)
    return 1 - ratio.where(ratio.isfinite(), torch.nan)


def _differ(shortfalls: Tensor) -> bool:
    known = shortfalls[shortfalls.isfinite()]
    return bool(known.numel() and known.max() - known.min() > 1e-3 * known.max())


def _claimed_eps_value(claims: Claims, layer: nn.Module) -> str:
    eps = getattr(layer, "eps", None)
    # What is learned on top of it counts as eps too.
    alone = isinstance(eps, float) and not getattr(layer, "learned_eps", False)
    return f"{eps:.3g}" if alone and claims.eps != "none" else ""


CHECKS = (
    Check("eps", lambda claims, _: claims.eps if claims.eps != "none" else "", _eps),
    Check("value of eps", _claimed_eps_value, _eps_value),
)
