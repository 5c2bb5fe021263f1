"""The memory of a training, from a step that is rehearsed on the meta device: nothing is allocated or computed."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from normcore.build import PARAMETER_DTYPES, build_model
from normcore.curves import LONGEST_S, MOST_STEPS
from normcore.data.shaped import shaped
from normcore.evaluation import BATCH
from normcore.live_bytes import LiveBytes
from normcore.menu.closing_probes import PlaneProbeSpec
from normcore.menu.datasets import DataSpec
from normcore.menu.optimizers import OptimizerSpec
from normcore.noise.noise import start_step
from normcore.norms.closed_form import rehearsed
from normcore.objective import loss_of
from normcore.spec import JobSpec

MIB = 2**20

HALF = {"bfloat16": torch.bfloat16, "float16": torch.float16}
"""What linear and convolutional layers compute in, by the precisions under which that is not the parameters' dtype."""

FASTEST = {"cpu": 1e12, "cuda": 1e14}
"""Floating point operations in a second that no training exceeds by much: bounds the steps in a window of curves."""


def memory_mib(spec: JobSpec, device: Literal["cpu", "cuda"] | None = None) -> float:
    """The most memory that a training's tensors take at once, on each of its devices, in MiB.

    A step, and the forward pass of an evaluation, are gone through on the meta device, and every tensor is followed
    from the operation that makes it to its end. What lives meanwhile counts too: parameters, gradients, the optimizer's
    state, what a probe copies, the dataset, the outputs that wait for their curves, and on a CPU the copies of a
    checkpoint and the weights that a probe keeps of the path.

    Within some percent of what the allocator is asked for. Left out are what it holds back besides, for want of holes
    of the right size (on a CPU about as much again), and what torch itself needs: some 0.3 GiB on a CPU and 0.5 GiB on
    a GPU. Takes about as long as a small batch's step would, tens of milliseconds for a VGG.

    Args:
        spec: The job.
        device: What it trains on; when not given what the spec says, or a GPU where it says auto and there is one.

    Raises:
        Refusal: The model cannot be built.
    """
    device = device or _device(spec)
    dtype, samples = PARAMETER_DTYPES[spec.precision], spec.batch_size // (spec.devices * spec.accumulation)
    if spec.norm.kind == "sync" and spec.devices > 1:
        # One sample of its own is enough where there are others' too, and here it would be alone.
        samples = max(2, samples)
    standing_for = rehearsed.set(device)
    with _Rehearsal(device) as live:
        # As the learner has it: some norms take less memory so.
        model = build_model(spec, device="meta").to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        parameters = list(model.parameters())
        probing = _probe_copies(spec)
        held = [torch.empty_like(each) for each in parameters for _ in range(_state_copies(spec.optimizer) + probing)]
        if spec.ema is not None:
            held += [torch.empty_like(parameter) for parameter in parameters]
        # Of the micro-batches before, beside those of this one.
        sums = [torch.empty_like(parameter) for parameter in parameters] if spec.accumulation > 1 else []
        batch, loss = shaped(spec.data, samples, dtype), loss_of(spec.data)
        # Gradients of the last step live until the backward pass of this one.
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter)
        start_step(model, seed=0, step=0)
        with _autocast(spec):
            outputs = batch.through(model)
        error = loss(outputs.float() if spec.precision in HALF else outputs, batch.labels)
        for parameter in parameters:
            parameter.grad = None
        error.backward()  # type: ignore[no-untyped-call]
        del error, batch, sums
        tests = shaped(spec.data, min(BATCH, spec.data.num_test or BATCH), dtype)
        model.eval()
        with torch.no_grad(), _autocast(spec):
            tests.through(model)
    rehearsed.reset(standing_for)
    with_model = _bytes([*parameters, *model.buffers()])
    # In the memory of the host.
    path = _kept_weights(spec) * _bytes(parameters) if device == "cpu" else 0
    state = _bytes(held) - probing * _bytes(parameters) + path
    # The snapshot of a checkpoint lives until the next record is there, so beside the steps after it.
    snapshot = with_model + state if device == "cpu" else 0
    if spec.num_steps > spec.checkpoint_every:
        peak = live.peak + path + snapshot
    else:
        peak = max(live.peak + path, with_model + _bytes(parameters) + state + snapshot)
    waiting = spec.accumulation * _waiting(spec, model, outputs, device)
    total: int = peak + dataset_bytes(spec.data, dtype) + waiting
    return total / MIB


def dataset_bytes(data: DataSpec, dtype: torch.dtype) -> int:
    """What a dataset takes on its device: pixels are bytes, tokens and classes int64, all else of the given dtype.

    Example:
        >>> from normcore.menu.datasets import Cifar10Spec
        >>> dataset_bytes(Cifar10Spec(), torch.float32) == 60_000 * (3 * 32 * 32 + 8)
        True
    """
    itemsize = {"images": 1, "tokens": 8, "sequences": 1}.get(data.form, dtype.itemsize)
    label = 8 if data.task == "classification" else data.num_outputs * dtype.itemsize
    # A dataset that has not been counted yet counts nothing.
    samples = (data.num_train or 0) + (data.num_test or 0) + (getattr(data, "num_validation", None) or 0)
    # Of a streamed one, only labels stay.
    streamed = samples and getattr(data, "streamed", False)
    return samples * (label if streamed else math.prod(data.shape) * itemsize + label)


def _device(spec: JobSpec) -> Literal["cpu", "cuda"]:
    if spec.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return spec.device


def _waiting(spec: JobSpec, model: nn.Module, outputs: Tensor, device: Literal["cpu", "cuda"]) -> int:
    """Bytes of the outputs that wait for a flush of the curves, twice: they are stacked then."""
    # Each weight is multiplied and added at least once for a sample, and three times so with the backward pass.
    seconds = 6 * sum(parameter.numel() for parameter in model.parameters()) * len(outputs) / FASTEST[device]
    steps = min(MOST_STEPS, spec.num_steps, 1 + int(LONGEST_S / max(seconds, 1e-6)))
    return 2 * steps // spec.record_every * outputs.numel() * outputs.element_size()


def _probe_copies(spec: JobSpec) -> int:
    """How many copies of the parameters live at once while a probe reads; they read one after the other.

    For those that see updates, the weights and the gradient of before the update are kept until after it.
    """
    return max((probe.copies + (2 if probe.part().sees == "update" else 0) for probe in spec.probes), default=0)


def _kept_weights(spec: JobSpec) -> int:
    """How many copies of the parameters are kept of the path that the training takes."""
    kept = 0
    for probe in spec.probes:
        if isinstance(probe, PlaneProbeSpec):
            kept += min(probe.keep, spec.num_steps // probe.every) if isinstance(probe.every, int) else probe.keep
    return kept


def _bytes(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _state_copies(spec: OptimizerSpec) -> int:
    """How many numbers the optimizer keeps for each parameter: it is asked for one step on a small one."""
    model = nn.ParameterList([torch.zeros(2, 3)])
    optimizer = spec.part()(spec, model)
    model[0].grad = torch.zeros(2, 3)
    optimizer.step()
    return sum(value.shape == model[0].shape for value in optimizer.state[model[0]].values() if torch.is_tensor(value))


def _autocast(spec: JobSpec) -> Any:
    return _Autocast(HALF[spec.precision]) if spec.precision in HALF else nullcontext()


class _Autocast(TorchFunctionMode):
    """What `torch.autocast` does to linear and convolutional layers, which it does on real devices only."""

    lowered = (functional.linear, functional.conv1d, functional.conv2d, functional.conv3d, torch.matmul, torch.bmm)

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Torch calls it for each function."""
        kwargs = kwargs or {}
        if func in self.lowered:
            args = tuple(map(self._cast, args))
            kwargs = {name: self._cast(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)

    def _cast(self, value: Any) -> Any:
        floats = isinstance(value, Tensor) and value.dtype == torch.float32
        return value.to(self.dtype) if floats else value


class _Rehearsal(LiveBytes):  # type: ignore[no-untyped-call]
    """Follows convolutions as they are on real devices, where they differ from those on the meta device.

    Layers in channels_last give maps in channels_last whatever they are given; and on a CPU float64 is not oneDNN's but
    torch's own, which unfolds its input.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self._device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Torch calls it for each operation."""
        made = super().__torch_dispatch__(func, types, args, kwargs)
        if func is torch.ops.aten.convolution.default:
            self._unfold(args[0], args[1], made)
            if made.dim() == 4:
                # In place, lest there be two of them.
                made.as_strided_(made.shape, made.new_empty(made.shape).to(memory_format=torch.channels_last).stride())
        elif func is torch.ops.aten.convolution_backward.default:
            self._unfold(args[1], args[2], args[0])
        return made

    def _unfold(self, x: Tensor, weight: Tensor, y: Tensor) -> None:
        if self._device == "cpu" and x.dtype == torch.float64 and math.prod(weight.shape[2:]) > 1:
            columns = y.numel() // y.shape[1] * math.prod(weight.shape[1:]) * x.element_size()
            self.peak = max(self.peak, self.now + columns)
