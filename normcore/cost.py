"""What a training step costs, worked out on the meta device: nothing is allocated or computed."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from normcore.build import PARAMETER_DTYPES, build_model
from normcore.data.batch import Batch
from normcore.data.shaped import shaped
from normcore.menu.optimizers import OptimizerSpec
from normcore.menu.own_datasets import OwnImagesSpec
from normcore.noise.noise import start_step
from normcore.objective import Loss, loss_of
from normcore.spec import JobSpec

MIB = 2**20


def flops_per_step(model: nn.Module, batch: Batch) -> int:
    """Floating point operations of one training step, forward and backward, of a model on the meta device.

    Counted are multiplications and additions of all products: linear and convolutional layers, padding included, the
    two products of attention, and the products of each time step of an LSTM. Each counts once forward, and once
    for the gradient of each of its factors that needs one, which images do not. Norms, noise, activations and the
    optimizer are left out: they cost memory traffic rather than arithmetic.

    Args:
        model: On the meta device.
        batch: On the meta device, see `normcore.data.shaped`; its labels do not count.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 4, device="meta"), nn.Linear(4, 5, device="meta"))
        >>> flops_per_step(net, Batch(torch.empty(2, 3, device="meta"), torch.empty(2, device="meta")))
        336
    """
    with _Products() as products:
        batch.through(model).sum().backward()  # type: ignore[no-untyped-call]
    model.zero_grad()
    return products.flops


class _Products(TorchDispatchMode):
    """Adds up the operations of all products in its scope, by torch's own formulas.

    `torch.utils.flop_counter.FlopCounterMode` does it too, with hooks on all modules of the process, which two previews
    at the same time would share.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Torch calls it for each operation."""
        made = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func._overloadpacket):  # noqa: SLF001
            self.flops += formula(*args, **(kwargs or {}), out_val=made)
        return made


def memory_mib(spec: JobSpec) -> float:
    """Memory of a training on its device, in MiB: an estimate from below.

    The sum of parameters, gradients and the optimizer's state; two more copies of the parameters where a probe walks
    along the gradient; what autograd keeps of a batch for the backward pass; the batch; and the dataset, which lives on
    the device as bytes unless it is streamed. Under bfloat16 the kept values and a second copy of the weights count two bytes. Left out are
    what lives for moments (the gradients of activations, the workspace of convolutions), what an allocator holds back,
    and what torch itself needs: some 0.3 GiB on a CPU and 0.5 GiB on a GPU.

    Raises:
        Refusal: The model cannot be built.
    """
    parameter_dtype = PARAMETER_DTYPES[spec.precision]
    compute_dtype = torch.bfloat16 if spec.precision == "bfloat16" else parameter_dtype
    model = build_model(spec, device="meta", dtype=compute_dtype)
    count = sum(parameter.numel() for parameter in model.parameters())
    copies = 2 + _state_copies(spec.optimizer) + (2 if spec.probes else 0)
    parameters = count * (copies * parameter_dtype.itemsize)
    if compute_dtype is not parameter_dtype:
        parameters += count * compute_dtype.itemsize
    pixels = math.prod(spec.data.shape)
    streamed = isinstance(spec.data, OwnImagesSpec) and spec.data.streamed
    dataset = 0 if streamed else (spec.num_train + (spec.data.num_test or 0)) * pixels
    batch = spec.batch_size * pixels * parameter_dtype.itemsize
    kept = _kept_for_backward(model, shaped(spec.data, spec.batch_size, compute_dtype), loss_of(spec.data))
    return (parameters + dataset + batch + kept) / MIB


def _state_copies(spec: OptimizerSpec) -> int:
    """How many numbers the optimizer keeps for each parameter: it is asked for one step on a small one."""
    model = nn.ParameterList([torch.zeros(2, 3)])
    optimizer = spec.part()(spec, model)
    model[0].grad = torch.zeros(2, 3)
    optimizer.step()
    return sum(value.shape == model[0].shape for value in optimizer.state[model[0]].values() if torch.is_tensor(value))


def _kept_for_backward(model: nn.Module, batch: Batch, loss: Loss) -> int:
    """Bytes that autograd keeps between the passes: each storage once, parameters, buffers and the batch not at all."""
    given = [tensor for tensor in (batch.inputs, batch.labels, batch.mask) if tensor is not None]
    known = {tensor.untyped_storage()._cdata for tensor in (*given, *model.parameters(), *model.buffers())}  # noqa: SLF001
    # The tensors are held on to, lest one that is freed hands its address on to another.
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor  # noqa: SLF001
        return tensor

    start_step(model, seed=0, step=0)
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss(batch.through(model), batch.labels)
    return sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in known)
