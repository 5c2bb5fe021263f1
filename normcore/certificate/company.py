"""What a layer is in the company of others: memory formats, autocast, copies, saved states, function transforms."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from normcore.certificate.check import Check, NotTried, Observation, always, within
from normcore.certificate.trial import Trial, largest, learned, output_of, pure
from normcore.norms.claims import Claims


def _half_inputs(trial: Trial) -> Observation:
    """Half precision in and out, with parameters in float32."""
    for training in (True, False):
        layer = trial.copy(torch.float32, training=training)
        for dtype in (torch.bfloat16, torch.float16):
            given = layer(trial.draw(dtype=dtype)).dtype
            if given != dtype:
                return Observation(f"{dtype} becomes {given}".replace("torch.", ""))
    return Observation("kept")


def _memory_format(trial: Trial) -> Observation:
    channels_last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(len(trial.shape))
    if channels_last is None:
        raise NotTried(f"inputs of shape {trial.shape} have a single memory format")
    for training in (True, False):
        for dtype in (torch.float64, torch.float32):
            layer = trial.copy(dtype, training=training)
            for memory_format in (torch.contiguous_format, channels_last):
                x = trial.draw(dtype=dtype).to(memory_format=memory_format)
                y, plain = output_of(layer, x), output_of(layer, x.contiguous())
                if not y.is_contiguous(memory_format=memory_format):
                    return Observation(f"dropped: {memory_format}".replace("torch.", ""))
                if largest(y - plain) > 1e-4:
                    return Observation(f"other values in {memory_format}".replace("torch.", ""))
    return Observation("kept")


def _autocast(trial: Trial) -> Observation:
    """The same values and dtype within a region of mixed precision as outside."""
    layer = trial.copy(torch.float32)
    for dtype in (torch.float32, torch.bfloat16):
        x = trial.draw(dtype=dtype)
        y = output_of(layer, x)
        with torch.autocast(trial.device.type, torch.bfloat16):
            mixed = output_of(layer, x)
        if mixed.dtype != dtype:
            return Observation(f"{dtype} becomes {mixed.dtype}".replace("torch.", ""))
        if largest(mixed - y) > torch.finfo(dtype).eps * 100:
            return Observation(f"other values for {dtype}".replace("torch.", ""), largest(mixed - y))
    return Observation("unchanged")


def _deepcopy(trial: Trial) -> Observation:
    """A copy does the same, and shares nothing."""
    layer, x = trial.copy(), trial.draw()
    twin = copy.deepcopy(layer)
    before = output_of(layer.eval(), x)
    twin(trial.draw(3))
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1)
    return Observation("apart" if torch.equal(output_of(layer, x), before) else "shares state")


def _state_dict(trial: Trial) -> Observation:
    """A layer with a past, saved and loaded into one without, gives the same bits in evaluation."""
    layer, x = trial.copy(training=False), trial.draw(1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.mul_(1.5)
    fresh = trial.copy().eval()
    fresh.load_state_dict(copy.deepcopy(layer.state_dict()))
    return Observation("same bits" if torch.equal(fresh(x), layer(x)) else "something is left out")


def _meta(trial: Trial) -> Observation:
    """Shapes without numbers."""
    given = trial.copy(torch.float32).to("meta")(torch.empty(trial.shape, dtype=torch.float32, device="meta"))
    return Observation("shape kept" if tuple(given.shape) == trial.shape else f"becomes {tuple(given.shape)}")


def _vmap(trial: Trial) -> Observation:
    """Outputs and gradients of single samples, mapped, against one after the other."""
    layer = trial.copy(training=False)
    function, parameters, x, cotangent = pure(layer), learned(layer), trial.draw(), trial.draw(2)[0]

    def one(sample: Tensor) -> Tensor:
        return function(sample.unsqueeze(0), parameters).squeeze(0)

    def loss(sample: Tensor) -> Tensor:
        return (one(sample) * cotangent).sum()

    outputs = vmap(one)(x) - torch.stack([one(sample) for sample in x])
    gradients = vmap(grad(loss))(x) - torch.stack([grad(loss)(sample) for sample in x])
    return within(max(largest(outputs), largest(gradients)), 1e-9)


def _functional(trial: Trial) -> Observation:
    """The gradient of a functional call in training, against that of the module."""
    layer, x, cotangent = trial.copy(), trial.draw(), trial.draw(2)
    parameters = {name: p.detach() for name, p in learned(layer).items()}

    def loss(x: Tensor) -> Tensor:
        buffers = {name: buffer.clone() for name, buffer in layer.named_buffers()}
        y: Tensor = functional_call(layer, (parameters, buffers), (x,))
        return (y * cotangent).sum()

    leaf = x.clone().requires_grad_()
    (wanted,) = torch.autograd.grad((layer(leaf) * cotangent).sum(), leaf)
    layer = trial.copy()
    return within(largest(grad(loss)(x) - wanted), 1e-9)


def _half(words: str) -> Callable[[Claims, nn.Module], str]:
    return lambda claims, _: words if claims.precision == "float32" else ""


def _memory(claims: Claims, _: nn.Module) -> str:
    return "kept" if claims.memory_format == "kept" else ""


CHECKS = (
    Check("dtype of half precision inputs", _half("kept"), _half_inputs),
    Check("memory format", _memory, _memory_format),
    Check("autocast", _half("unchanged"), _autocast),
    Check("deepcopy", always("apart"), _deepcopy),
    Check("state dict", always("same bits"), _state_dict),
    Check("meta device", always("shape kept"), _meta),
    Check("vmap over samples in evaluation", always("yes"), _vmap),
    Check("gradient of a functional call", always("yes"), _functional),
)
