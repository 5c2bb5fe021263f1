"""Derivatives in float64: of the first order, of the second, and the second in both orders of differentiation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.gradcheck import gradcheck, gradgradcheck
from torch.func import grad, jvp

from normcore.certificate.check import Check, NotTried, Observation, within
from normcore.certificate.trial import Trial, largest, learned, pure
from normcore.norms.claims import Claims

ATOL, RTOL = 1e-8, 1e-4
"""Tighter than gradcheck's own, which for a product of a whole Jacobian with a vector let much pass."""


def _first(trial: Trial) -> Observation:
    return _word(all(_right(trial, training=training) for training in (True, False)))


def _second(trial: Trial) -> Observation:
    _first_is_right(trial)
    for training in (True, False):
        function, arguments = _function(trial, training=training)
        if not gradgradcheck(function, arguments, atol=ATOL, rtol=RTOL, fast_mode=True, raise_exception=False):
            return _word(right=False)
    return _word(right=True)


def _forward_over_reverse(trial: Trial) -> Observation:
    """A product of the Hessian with a vector, against reverse over reverse."""
    _first_is_right(trial)
    layer, x, cotangent, direction = trial.copy(), trial.draw(), trial.draw(2), trial.draw(3)
    function, parameters = pure(layer), {name: p.detach() for name, p in learned(layer).items()}

    def loss(x: Tensor) -> Tensor:
        return (function(x, parameters) * cotangent).sum()

    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
    # Of a linear layer the second derivative is zero, and autograd knows no path to it.
    wanted = torch.zeros_like(x)
    if gradient.requires_grad:
        wanted = torch.autograd.grad((gradient * direction).sum(), leaf, allow_unused=True, materialize_grads=True)[0]
    given = jvp(grad(loss), (x,), (direction,))[1]
    return within(largest(given - wanted) / (largest(wanted) or 1.0), 1e-8)


def _right(trial: Trial, *, training: bool) -> bool:
    function, arguments = _function(trial, training=training)
    return gradcheck(function, arguments, atol=ATOL, rtol=RTOL, fast_mode=True, raise_exception=False)


def _function(trial: Trial, *, training: bool) -> tuple[_Flat, tuple[Tensor, ...]]:
    layer = trial.copy(training=training)
    parameters = learned(layer)
    return _Flat(layer, tuple(parameters)), (trial.draw().requires_grad_(), *parameters.values())


class _Flat:
    """The layer as a function of a list of tensors, which is what gradcheck takes."""

    def __init__(self, layer: nn.Module, names: tuple[str, ...]) -> None:
        self._function, self._names = pure(layer), names

    def __call__(self, x: Tensor, *parameters: Tensor) -> Tensor:
        return self._function(x, dict(zip(self._names, parameters, strict=True)))


def _first_is_right(trial: Trial) -> None:
    if not _right(trial, training=True):
        raise NotTried("the first derivative is not that of the output")


def _word(right: bool) -> Observation:  # noqa: FBT001 (a verdict, not a switch)
    return Observation("exact" if right else "not the derivative")


def _exact(claims: Claims, _: nn.Module) -> str:
    return "exact" if claims.gradient == "exact" else ""


def _yes(claims: Claims, _: nn.Module) -> str:
    return "yes" if claims.gradient == "exact" else ""


CHECKS = (
    Check("gradient", _exact, _first, promised=True),
    Check("second derivative", _exact, _second),
    Check("forward over reverse is reverse over reverse", _yes, _forward_over_reverse),
)
