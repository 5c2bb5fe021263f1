"""What a layer does not see: scale, shift, sign; and what follows for the gradient of the weights before it."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from normcore.certificate.check import Check, NotTried, Observation, within
from normcore.certificate.trial import LARGE, Trial, largest, output_of
from normcore.norms.claims import Claims


def _scale(trial: Trial) -> Observation:
    layer, x = trial.copy(), trial.draw(scale=LARGE)
    y = output_of(layer, x)
    return within(_relative(output_of(layer, 7 * x) - y, y), up_to_eps(trial))


def _shift(trial: Trial) -> Observation:
    layer, x = trial.copy(), trial.draw()
    y = output_of(layer, x)
    per_channel = 3 * torch.randn(trial.per_channel, generator=torch.Generator().manual_seed(1)).to(x)
    error = _relative(output_of(layer, x + per_channel) - y, y)
    if error <= TOLERANCE:
        return Observation("channel", error, TOLERANCE, also=("sample",))
    error = _relative(output_of(layer, x + 2.5) - y, y)
    return Observation("sample" if error <= TOLERANCE else "none", error, TOLERANCE)


def _odd(trial: Trial) -> Observation:
    layer, x = trial.copy(), trial.draw()
    y = output_of(layer, x)
    return within(_relative(output_of(layer, -x) + y, y), TOLERANCE)


def _orthogonality(trial: Trial) -> Observation:
    """The cosine of a weight matrix before the layer and its gradient."""
    layer, cotangent = trial.copy(), trial.draw(2)
    samples, channels, *pixels = trial.shape
    # Of a weight that is a single number there is only its size, which does not count.
    inputs = max(2, channels)
    z = replace(trial, shape=(samples, inputs, *pixels)).draw()
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn((channels, inputs), generator=generator, dtype=torch.float64).to(z).mul_(LARGE)
    weight.requires_grad_()
    terms = layer(torch.einsum("ck,nk...->nc...", weight, z)) * cotangent
    (gradient,) = torch.autograd.grad(terms.sum(), weight)
    if float(gradient.norm() * weight.norm()) <= up_to_eps(trial) * float(terms.abs().sum()):
        raise NotTried("no gradient comes through")
    cosine = (gradient * weight).sum() / (gradient.norm() * weight.norm())
    return within(largest(cosine), up_to_eps(trial))


def _theorem_4_1(trial: Trial) -> Observation:
    """The squared gradient norm with the layer, per channel, from the one without it, the output and gamma."""
    if (count := math.prod(trial.shape) // trial.shape[1]) < 3:
        raise NotTried(f"of {count} values in a channel hardly any gradient is left")
    layer, x, cotangent = trial.copy(), trial.draw(scale=LARGE).requires_grad_(), trial.draw(2)
    gamma = torch.ones(trial.shape[1], dtype=x.dtype, device=x.device)
    if isinstance(weight := getattr(layer, "weight", None), nn.Parameter) and weight.shape == gamma.shape:
        gamma = torch.linspace(0.5, 2.0, trial.shape[1], dtype=x.dtype, device=x.device)
        weight.data.copy_(gamma)
    (gradient,) = torch.autograd.grad((layer(x) * cotangent).sum(), x)
    g, dx, values = (tensor.detach().transpose(0, 1).flatten(1) for tensor in (cotangent, gradient, x))
    variance, mean = torch.var_mean(values, 1, correction=0, keepdim=True)
    y_hat, m = (values - mean) / variance.sqrt(), values.shape[1]
    bound = g.square().sum(1) - g.sum(1).square() / m - (g * y_hat).sum(1).square() / m
    wanted = gamma.square() / variance.squeeze(1) * bound
    return within(_relative(dx.square().sum(1) - wanted, wanted), up_to_eps(trial))


def up_to_eps(trial: Trial) -> float:
    """The deviation from a property that is exact without eps, at inputs of scale `LARGE`."""
    eps = getattr(trial.layer, "eps", None)
    eps = float(eps) if isinstance(eps, float | int) else 0.0
    if trial.claims is not None and trial.claims.eps == "outside":
        return max(1e-5, 10 * eps / LARGE)
    return max(1e-8, 10 * eps / LARGE**2)


def _relative(difference: Tensor, size: Tensor) -> float:
    error = largest(difference)
    return error / (largest(size) or 1.0) if math.isfinite(error) else error


def _orthogonal(claims: Claims, _: nn.Module) -> str:
    return "yes" if claims.scale_invariant and claims.gradient == "exact" else ""


TOLERANCE = 1e-9

CHECKS = (
    Check("scale invariance", lambda claims, _: "yes" if claims.scale_invariant else "", _scale),
    Check(
        "shift invariance", lambda claims, _: claims.shift_invariant if claims.shift_invariant != "none" else "", _shift
    ),
    Check("oddness", lambda claims, _: "yes" if claims.odd else "", _odd),
    Check("gradient orthogonal to weights before it", _orthogonal, _orthogonality),
    Check("Santurkar's theorem 4.1", lambda claims, _: "yes" if claims.theorem_4_1 else "", _theorem_4_1),
)
