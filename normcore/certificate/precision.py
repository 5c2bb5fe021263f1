"""How much of a number survives: statistics in float32 or better, two passes, and inputs without variance."""

from __future__ import annotations

import torch
from torch import Tensor

from normcore.certificate.check import Check, Observation, always, within
from normcore.certificate.trial import Trial, largest
from normcore.norms.claims import Claims

HALF = (torch.float16, torch.bfloat16)


def _large_half(trial: Trial) -> Observation:
    return _half(trial, scale=50.0, mean=200.0)


def _tiny_half(trial: Trial) -> Observation:
    return _half(trial, scale=1e-4, mean=0.0)


def _half(trial: Trial, *, scale: float, mean: float) -> Observation:
    """The worst deviation from float64, in roundings of the output's own size, of what one rounding cannot explain."""
    worst = 0.0
    for dtype in HALF:
        x = (mean + trial.draw(scale=scale)).to(dtype)
        y, exact = trial.copy(torch.float32)(x).double(), trial.copy()(x.double())
        # Half a step of the dtype, subnormals included, and as much again for what float32 lost before.
        step = torch.finfo(dtype).eps * exact.abs().clamp(min=torch.finfo(dtype).tiny)
        worst = max(worst, largest((y - exact) / (step + 1e-2 * torch.finfo(dtype).eps)))
    return within(worst, 1.0)


def _huge_mean(trial: Trial) -> Observation:
    """float32 numbers around 1000 with a standard deviation of one, against float64."""
    x = (1000 + trial.draw()).float()
    y, exact = trial.copy(torch.float32)(x).double(), trial.copy()(x.double())
    return within(largest(y - exact) / max(1.0, largest(exact)), 1e-3)


def _no_variance(trial: Trial) -> Observation:
    """The same value everywhere: zero, and another."""
    for value in (0.0, 3.0):
        layer = trial.copy(torch.float32)
        x = torch.full(trial.shape, value, device=trial.device, dtype=torch.float32, requires_grad=True)
        y: Tensor = layer(x)
        (gradient,) = torch.autograd.grad((y * trial.draw(dtype=torch.float32)).sum(), x)
        if not (y.isfinite().all() and gradient.isfinite().all()):
            return Observation(f"not finite at {value:g}")
    return Observation("finite")


def _sees_all(claims: Claims, _: object) -> str:
    return "yes" if claims.precision == "float32" else ""


CHECKS = (
    Check("half precision inputs of 200 +- 50", _sees_all, _large_half),
    Check("half precision inputs of 1e-4", _sees_all, _tiny_half),
    Check("float32 inputs of 1000 +- 1", _sees_all, _huge_mean),
    Check("inputs without variance", always("finite"), _no_variance),
)
