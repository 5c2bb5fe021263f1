"""Gamma and beta from a calibration batch, where no mathematics gives them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from normcore.norms.norm import Norm
from normcore.refusal import Refusal
from normcore.surgery.candidate import Candidate
from normcore.surgery.compare import hooked, run
from normcore.surgery.hooks import take_hooks_away
from normcore.surgery.plain import plain, take_threshold_away

STILL = 1e-4
"""Standard deviation of a normalized channel below which it hardly moves on the calibration batch: its gamma is not
matched, which would take a factor of thousands, but taken over."""


@dataclass(frozen=True, slots=True)
class Moments:
    """Of the outputs of one layer on the calibration batch, per channel, in float64."""

    mean: Tensor
    std: Tensor
    root_mean_square: Tensor
    sign: Tensor
    """Of the correlation with what the new norm makes of the same input: a negative gamma turned the map over."""


def measure_original(
    model: nn.Module, batch: tuple[Any, ...], candidates: Sequence[Candidate]
) -> tuple[dict[str, Moments], dict[str, str]]:
    """Moments of every layer's output, by path; and by path why a new norm refuses the input that it would be given."""
    moments: dict[str, Moments] = {}
    refusals: dict[str, str] = {}

    def look(candidate: Candidate) -> Callable[..., None]:
        reference, bare = plain(candidate.known), _bare(candidate.norm)

        def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            x = inputs[0]
            if candidate.path in moments or candidate.path in refusals:
                return
            try:
                mine = bare(_first(x, candidate))
            except Refusal as refusal:
                refusals[candidate.path] = str(refusal)
                return
            theirs = _first(reference(x), candidate)
            theirs = theirs.relu() if _matched_after_relu(candidate) else theirs
            moments[candidate.path] = _moments(theirs, mine)

        return hook

    with hooked(model, {c.path: look(c) for c in candidates}, before=True):
        run(model, batch)
    return moments, refusals


def match(
    model: nn.Module, batch: tuple[Any, ...], candidates: Sequence[Candidate], wanted: Mapping[str, Moments]
) -> dict[str, str]:
    """Gives every norm that is not exact running statistics of the batch, and the gamma and beta with which its outputs
    have the mean and the variance per channel that the original's had; where it has no beta, their mean square.

    One pass: when a norm is reached, those before it are matched already, and it is fitted to what they hand it. A
    norm that is called several times is fitted at its first call.

    Returns:
        Of every norm that was not exact, by path: why it could not be matched; empty where it was.
    """
    outcomes: dict[str, str] = {}

    def fit(candidate: Candidate) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            if candidate.path in outcomes or candidate.path not in wanted:
                return
            try:
                outcomes[candidate.path] = _fit(candidate.norm, inputs[0], wanted[candidate.path])
            except Refusal as refusal:
                outcomes[candidate.path] = str(refusal)

        return hook

    inexact = [candidate for candidate in candidates if not candidate.exact]
    handles = [candidate.norm.register_forward_pre_hook(fit(candidate)) for candidate in inexact]
    try:
        run(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return {c.path: outcomes.get(c.path, "the calibration batch does not come by it") for c in inexact}


def _fit(norm: Norm, x: Tensor, wanted: Moments) -> str:
    gamma, beta, tau = (getattr(norm, name, None) for name in ("weight", "bias", "tau"))
    _gather(norm, x)
    if gamma is None:
        return "it has no gamma and no beta to match anything with"
    with torch.no_grad():
        y = _bare(norm)(x).double().transpose(0, 1).flatten(1)
        ratio = wanted.root_mean_square / y.square().mean(1).sqrt()
        if beta is not None:
            ratio = wanted.std / y.std(1, correction=0)
        moves = y.std(1, correction=0) > STILL
        if not all(t.isfinite().all() for t in (y, wanted.mean, wanted.root_mean_square)):
            return "on the calibration batch some outputs are not finite"
        gamma.copy_(torch.where(moves, wanted.sign * ratio, gamma.double()))
        if beta is not None:
            beta.copy_(wanted.mean - gamma * y.mean(1))
        if tau is not None:
            tau.fill_(0)
    return ""


def _gather(norm: Norm, x: Tensor) -> None:
    """Running statistics of this one batch, where the norm has any: those of a training pass with momentum 1."""
    momentum = getattr(norm, "momentum", None)
    if not isinstance(momentum, float):
        return
    counts = {name: buffer.clone() for name, buffer in norm.named_buffers() if not buffer.is_floating_point()}
    vars(norm)["momentum"] = 1.0
    norm.train()
    try:
        norm.forward(x)
    finally:
        vars(norm)["momentum"] = momentum
        norm.eval()
        for name, count in counts.items():
            norm.get_buffer(name).copy_(count)


def _moments(theirs: Tensor, mine: Tensor) -> Moments:
    theirs, mine = (t.double().transpose(0, 1).flatten(1) for t in (theirs, mine))
    mean = theirs.mean(1)
    covariance = ((theirs - mean[:, None]) * (mine - mine.mean(1, keepdim=True))).mean(1)
    return Moments(
        mean=mean,
        std=theirs.std(1, correction=0),
        root_mean_square=theirs.square().mean(1).sqrt(),
        sign=torch.where(covariance < 0, -1.0, 1.0).double(),
    )


def _bare(norm: Norm) -> nn.Module:
    """A copy of a norm with gamma one, beta zero and no threshold."""
    norm = copy.deepcopy(norm).eval()
    take_hooks_away(norm)
    take_threshold_away(norm)
    with torch.no_grad():
        for name, value in (("weight", 1), ("bias", 0)):
            if isinstance(getattr(norm, name, None), Tensor):
                getattr(norm, name).fill_(value)
    return norm


def _matched_after_relu(candidate: Candidate) -> bool:
    """Whether the new norm cannot be looked at before its own non-linearity."""
    in_one = candidate.norm.activates and getattr(candidate.norm, "tau", None) is None
    return in_one and not candidate.activated_before


def _first(x: Tensor, candidate: Candidate) -> Tensor:
    return x.movedim(-1, 1) if candidate.known.channels_last else x
