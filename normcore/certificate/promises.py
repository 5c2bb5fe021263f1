"""What every layer owes, whatever it claims: shape, dtype, finite numbers, and the same again when asked again."""

from __future__ import annotations

import copy
import numbers
from typing import Any

import torch
from torch import Tensor, nn

from normcore.certificate.check import Check, Observation, always
from normcore.certificate.trial import Trial

HALF = (torch.bfloat16, torch.float16)


def _shape(trial: Trial) -> Observation:
    for training in (True, False):
        shape = tuple(trial.copy(training=training)(trial.draw()).shape)
        if shape != trial.shape:
            return Observation(f"{trial.shape} becomes {shape}")
    return Observation("kept")


def _dtype(trial: Trial) -> Observation:
    """In half precision only where the layer can be had in it at all."""
    for dtype in (torch.float64, torch.float32, *HALF):
        try:
            given = trial.copy(dtype)(trial.draw(dtype=dtype)).dtype
        except RuntimeError:
            if dtype not in HALF:
                raise
            continue
        if given != dtype:
            return Observation(f"{dtype} becomes {given}".replace("torch.", ""))
    return Observation("kept")


def _finite(trial: Trial) -> Observation:
    for training in (True, False):
        layer = trial.copy(torch.float32, training=training)
        if not all(tensor.isfinite().all() for tensor in _pass(layer, trial.draw(dtype=torch.float32))):
            return Observation("not finite")
    return Observation("finite")


def _deterministic(trial: Trial) -> Observation:
    for training in (True, False):
        layer, x = trial.copy(torch.float32, training=training), trial.draw(dtype=torch.float32)
        first, second = _pass(copy.deepcopy(layer), x), _pass(copy.deepcopy(layer), x)
        if not all(torch.allclose(a, b, 0, 0, equal_nan=True) for a, b in zip(first, second, strict=True)):
            return Observation(f"other bits in {'training' if training else 'evaluation'}")
    return Observation("same bits")


def _state_in_evaluation(trial: Trial) -> Observation:
    layer = trial.copy(training=False)
    before = state(layer)
    with torch.no_grad():
        layer(trial.draw(1))
        layer(trial.draw(2))
    moved = [name for name, value in state(layer).items() if not _same(value, before.get(name))]
    return Observation(f"moves {', '.join(moved)}" if moved else "stays")


def state(layer: nn.Module) -> dict[str, Any]:
    """Every tensor and every number that the layer keeps, registered or not, in copies."""
    tensors = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
    kept: dict[str, Any] = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    for path, module in layer.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor | numbers.Number):
                kept[f"{path}.{name}".strip(".")] = value.detach().clone() if isinstance(value, Tensor) else value
    return kept


def _same(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else bool(a == b)


def _pass(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """The output, and the gradients of a random sum of it."""
    x = x.clone().requires_grad_()
    y = layer(x)
    cotangent = torch.linspace(-1, 2, y.numel(), dtype=y.dtype, device=y.device).view(y.shape)
    wanted = [x, *(p for p in layer.parameters() if p.requires_grad)]
    gradients = torch.autograd.grad((y * cotangent).sum(), wanted, allow_unused=True)
    return [y.detach(), *(gradient for gradient in gradients if gradient is not None)]


CHECKS = (
    Check("shape", always("kept"), _shape, promised=True, vital=True),
    Check("same twice", always("same bits"), _deterministic, promised=True, vital=True),
    Check("dtype", always("kept"), _dtype, promised=True),
    Check("finite", always("finite"), _finite, promised=True),
    Check("state in evaluation", always("stays"), _state_in_evaluation, promised=True),
)
