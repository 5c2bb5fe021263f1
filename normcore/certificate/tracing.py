"""The layer as a graph: compiled in one piece, exported, and, where it is asked for, in ONNX."""

from __future__ import annotations

import copy
import importlib.util
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product

import torch
from torch import Tensor, nn

from normcore.certificate.check import Check, NotTried, Observation, always, within
from normcore.certificate.trial import Trial, largest, output_of
from normcore.norms.claims import Claims

Traced = Callable[[Tensor], Tensor]

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
MEMORY_FORMATS = (torch.contiguous_format, torch.channels_last)
Cell = tuple[torch.dtype, torch.memory_format]
CELLS: tuple[Cell, ...] = tuple(product(DTYPES, MEMORY_FORMATS))
"""What inputs are traced with."""


def _compiles(trial: Trial, *, dtype: torch.dtype, memory_format: torch.memory_format) -> Observation:
    """A training step and an evaluation: output, gradients and state against eager, dtype and memory format kept."""
    x = _input(trial, dtype, memory_format)
    worst = 0.0
    for training in (True, False):
        layer = trial.copy(_parameters_of(dtype), training=training)
        twin = copy.deepcopy(layer)
        with _tracing():
            compiled: Traced = torch.compile(layer, backend=trial.backend, fullgraph=True, dynamic=False)
            given = _step(compiled, layer, x)
        wanted = _step(twin, twin, x)
        if (other := _other_form(given[0], wanted[0])) is not None:
            return other
        worst = max([worst, *(_relative(a, b) for a, b in zip(given, wanted, strict=True))])
    return within(worst, _tolerance(dtype))


def _exports(trial: Trial, *, dtype: torch.dtype, memory_format: torch.memory_format) -> Observation:
    """`torch.export` of the layer in evaluation, and what the exported graph gives."""
    x = _input(trial, dtype, memory_format)
    layer = trial.copy(_parameters_of(dtype), training=False)
    with _tracing(), torch.no_grad():
        given: Tensor = torch.export.export(layer, (x,)).module()(x)
    wanted = output_of(layer, x)
    return _other_form(given, wanted) or within(_relative(given, wanted), _tolerance(dtype))


def _onnx(trial: Trial) -> Observation:
    """The layer in evaluation as ONNX runtime runs it."""
    if any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxruntime", "onnxscript")):
        raise NotTried("onnx, onnxruntime and onnxscript are not installed: pip install 'normcore[onnx]'")
    import onnxruntime

    x = trial.draw(dtype=torch.float32).cpu()
    layer = trial.copy(torch.float32, training=False).cpu()
    with _tracing(), torch.no_grad():
        program = torch.onnx.export(layer, (x,), dynamo=True, verbose=False)
        if program is None:
            raise NotTried("torch gave no ONNX program")
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (given,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return within(largest(torch.as_tensor(given) - layer(x)), 1e-4)


def _input(trial: Trial, dtype: torch.dtype, memory_format: torch.memory_format) -> Tensor:
    if memory_format == torch.channels_last and len(trial.shape) != 4:
        raise NotTried(f"inputs of shape {trial.shape} have no channels_last")
    return trial.draw(dtype=dtype).to(memory_format=memory_format)


def _step(function: Traced, layer: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = function(x)
    wanted = [x, *(p for p in layer.parameters() if p.requires_grad)]
    gradients = torch.autograd.grad(y.to(_parameters_of(y.dtype)).square().sum(), wanted, allow_unused=True)
    kept = [buffer for buffer in layer.buffers() if buffer.is_floating_point()]
    return [y.detach(), *(g for g in gradients if g is not None), *kept]


def _other_form(given: Tensor, wanted: Tensor) -> Observation | None:
    if given.dtype != wanted.dtype:
        return Observation(f"{given.dtype} instead of {wanted.dtype}".replace("torch.", ""))
    if given.stride() != wanted.stride():
        return Observation(f"strides {given.stride()} instead of {wanted.stride()}")
    return None


def _relative(given: Tensor, wanted: Tensor) -> float:
    return largest(given.double() - wanted.double()) / max(1.0, largest(wanted))


def _parameters_of(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _tolerance(dtype: torch.dtype) -> float:
    """Sums in another order; in half precision, one rounding where there were two."""
    return {torch.float64: 1e-10, torch.float32: 1e-3}.get(dtype, 4 * torch.finfo(dtype).eps)


@contextmanager
def _tracing() -> Iterator[None]:
    """Other layers of the class have been compiled before, here or by the caller: their number is no reason to stop."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with torch._dynamo.config.patch(recompile_limit=10_000, accumulated_recompile_limit=10_000):  # noqa: SLF001
            yield
    finally:
        logger.setLevel(level)


def checks(cells: Iterable[Cell], *, onnx: bool) -> tuple[Check, ...]:
    """A row for compiling and one for exporting in each dtype and memory format, and one for ONNX where asked for."""
    made = []
    for dtype, memory_format in cells:
        words = f"{dtype} {memory_format}".replace("torch.", "").replace("contiguous_format", "contiguous")
        claimed = _in_half if dtype.itemsize == 2 else always("yes")
        made.append(Check(f"compiles: {words}", claimed, partial(_compiles, dtype=dtype, memory_format=memory_format)))
        made.append(Check(f"exports: {words}", claimed, partial(_exports, dtype=dtype, memory_format=memory_format)))
    return (*made, Check("exports: onnx", always("yes"), _onnx)) if onnx else tuple(made)


def _in_half(claims: Claims, _: nn.Module) -> str:
    return "yes" if claims.precision == "float32" else ""
