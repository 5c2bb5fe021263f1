"""What a new norm takes over from the one whose place it takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from normcore.norms.norm import Norm
from normcore.surgery.evaluation_affine import ScaleShift, evaluation_affine
from normcore.surgery.known import Known
from normcore.surgery.plain import plain

NOT_IN_EVALUATION = {
    "affine",
    "divisibility",
    "momentum",
    "virtual_batch_size",
    "virtual_ranks",
    "r_max",
    "d_max",
    "warmup_steps",
    "r_steps",
    "d_steps",
}
"""Knobs that evaluation does not know of."""


NORMS_OF_A_NORMAL = {"1": math.sqrt(2 / math.pi), "2": 1.0}
"""E(|x|^p)^(1/p) of a normal x of standard deviation one, by p as the menu writes it."""


def take_over(norm: Norm, kind: str, knobs: dict[str, Any], known: Known) -> tuple[bool, list[str]]:
    """Gives `norm` what it shares with the layer that it replaces, and more where that makes it the same function.

    In evaluation it is the same function where both are the same norm under two names (layer norm and group norm with
    one group), and where both are a scale and a shift per channel: then gamma and beta are solved for, whatever each
    of them means by eps and by its running statistics.

    Args:
        norm: Just built, on the shelf's terms; written to.
        kind: Its kind.
        knobs: Its knobs.
        known: The layer that it replaces.

    Returns:
        Whether it is the same function in evaluation, and the parameters and buffers that it took over.
    """
    taken = _copy_same_names(norm, kind, known)
    with torch.no_grad():
        for name, values in (("weight", known.gamma), ("bias", known.beta)):
            mine = getattr(norm, name, None)
            if isinstance(mine, Tensor) and values is not None and mine.shape == values.shape:
                mine.copy_(values)
                taken.append(name)
    taken = sorted(set(taken))
    # What a knob came to: where groups do not divide, the nearest number that does may have been taken.
    actual = {name: getattr(norm, name, value) for name, value in knobs.items()}
    if same_function(kind, actual, known):
        lost = any(
            values is not None and name not in taken and not values.is_meta and bool((values != neutral).any())
            for name, values, neutral in (("weight", known.gamma, 1), ("bias", known.beta, 0))
        )
        return not lost and not known.remark, taken
    return _solve(norm, known), taken


def same_function(kind: str, knobs: dict[str, Any], known: Known) -> bool:
    """Whether a norm of `kind` with `knobs` is that layer by another name, given the same gamma and beta."""
    if kind == "batch" or known.kind == "batch":
        return False  # Decided by what it does in evaluation.
    mine, other = _canonical(kind, knobs, known.num_features), _canonical(known.kind, known.knobs, known.num_features)
    return mine == other


def _canonical(kind: str, knobs: dict[str, Any], num_features: int) -> tuple[str, dict[str, Any]]:
    """One name for what has several, with the knobs that evaluation knows of."""
    if kind in {"group", "layer", "instance"}:
        groups = {"layer": 1, "instance": num_features}
        return "group", {"num_groups": groups.get(kind) or knobs["num_groups"], "eps": knobs["eps"]}
    knobs = {name: value for name, value in knobs.items() if name not in NOT_IN_EVALUATION}
    if kind == "local_response" and knobs["convention"] == "torch":
        return kind, knobs | {"convention": "alexnet", "alpha": knobs["alpha"] / knobs["size"]}
    return kind, knobs


def _copy_same_names(norm: Norm, kind: str, known: Known) -> list[str]:
    """Statistics, and parameters that only this kind has."""
    mine, theirs = dict(norm.named_buffers()), _statistics(dict(known.norm.named_buffers()), norm)
    if known.kind == kind:
        mine |= dict(norm.named_parameters())
        theirs |= dict(known.norm.named_parameters())
    taken = [name for name, values in theirs.items() if name in mine and mine[name].shape == values.shape]
    with torch.no_grad():
        for name in taken:
            mine[name].copy_(theirs[name])
    return taken


def _statistics(buffers: dict[str, Tensor], norm: Norm) -> dict[str, Tensor]:
    """Buffers, and what follows from them by the names that `norm` may know, if channels are normal and uncorrelated.

    Without it the function would be kept all the same, by a gamma that makes up for statistics of nobody; but training
    would then start with that gamma on statistics of its own.
    """
    buffers = dict(buffers)
    if "running_std" in buffers:
        buffers.setdefault("running_var", buffers["running_std"].square())
    if "running_var" in buffers and "running_mean" in buffers:
        mean, var = buffers["running_mean"], buffers["running_var"]
        buffers.setdefault("running_std", var.sqrt())
        buffers.setdefault("running_square", var + mean.square())
        buffers.setdefault("running_norm", var.sqrt() * NORMS_OF_A_NORMAL.get(getattr(norm, "p", ""), 1.0))
        whitening = dict(norm.named_buffers()).get("running_whitening")
        if whitening is not None:
            inverse_roots = (var + float(getattr(norm, "eps", 0.0))).rsqrt()
            buffers.setdefault("running_whitening", inverse_roots.view(whitening.shape[:2]).diag_embed())
    return buffers


def _solve(norm: Norm, known: Known) -> bool:
    """Sets gamma and beta so that the norm is, in evaluation, the scale and the shift that the layer is; or says no."""
    if known.channels_last:
        return False
    wanted = evaluation_affine(plain(known), known.num_features)
    return wanted is not None and solve(norm, wanted)


def solve(norm: Norm, wanted: ScaleShift) -> bool:
    """Sets gamma and beta of a norm so that it is `wanted` in evaluation, where it is a scale and a shift at all.

    Returns:
        Whether it is `wanted` now.
    """
    as_it_is = evaluation_affine(norm, norm.num_features)
    if as_it_is is None:
        return False
    if _close(as_it_is, wanted):
        return True
    gamma, beta = getattr(norm, "weight", None), getattr(norm, "bias", None)
    if gamma is None or beta is None:
        return False
    kept = gamma.detach().clone(), beta.detach().clone()
    with torch.no_grad():
        gamma.fill_(1)
        beta.fill_(0)
        bare = evaluation_affine(norm, norm.num_features)
        if bare is not None:
            scale = wanted.scale / bare.scale
            gamma.copy_(scale)
            beta.copy_(wanted.shift - gamma.to(scale) * bare.shift)
            return True
        gamma.copy_(kept[0])
        beta.copy_(kept[1])
    return False


def _close(one: ScaleShift, other: ScaleShift) -> bool:
    pairs: Sequence[tuple[Tensor, Tensor]] = ((one.scale, other.scale), (one.shift, other.shift))
    return all(torch.allclose(a, b, rtol=1e-12, atol=1e-300) for a, b in pairs)
