"""What a training step costs, worked out on the meta device: nothing is allocated or computed."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional

from normcore.build import PARAMETER_DTYPES, build_model
from normcore.menu.optimizers import OptimizerSpec
from normcore.noise.noise import start_step
from normcore.spec import JobSpec

MIB = 2**20


def flops_per_step(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Floating point operations of one training step, forward and backward, of a model on the meta device.

    Counted are the multiplications and additions of linear and convolutional layers, two for each weight and output
    position, padding included: once forward, once for the gradient of the weights, and once for the gradient of the
    input, which the first layer does not need. Norms, noise, activations and the optimizer are left out: they cost
    memory traffic rather than arithmetic.

    Args:
        model: On the meta device.
        shape: Of a batch of images, `(N, C, H, W)`.

    Example:
        >>> flops_per_step(nn.Sequential(nn.Linear(3, 4, device="meta"), nn.Linear(4, 5, device="meta")), (2, 3))
        336
    """
    forward: list[int] = []

    def count(layer: nn.Module, _: object, output: Tensor) -> None:
        assert isinstance(layer, nn.Linear | nn.Conv2d)
        forward.append(2 * layer.weight.numel() * output.numel() // output.shape[1])

    hooks = [
        layer.register_forward_hook(count) for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d)
    ]
    with torch.no_grad():
        model(torch.empty(shape, device="meta", dtype=next(model.parameters()).dtype))
    for hook in hooks:
        hook.remove()
    return 3 * sum(forward) - forward[0]


def memory_mib(spec: JobSpec) -> float:
    """Memory of a training on its device, in MiB: an estimate from below.

    The sum of parameters, gradients and the optimizer's state; two more copies of the parameters where a probe walks
    along the gradient; what autograd keeps of a batch for the backward pass; the batch; and the dataset, which lives on
    the device as bytes. Under bfloat16 the kept values and a second copy of the weights count two bytes. Left out are
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
    dataset = (spec.data.num_train + spec.data.num_test) * pixels
    batch = spec.batch_size * pixels * parameter_dtype.itemsize
    kept = _kept_for_backward(model, (spec.batch_size, *spec.data.shape), compute_dtype)
    return (parameters + dataset + batch + kept) / MIB


def _state_copies(spec: OptimizerSpec) -> int:
    """How many numbers the optimizer keeps for each parameter: it is asked for one step on a small one."""
    model = nn.ParameterList([torch.zeros(2, 3)])
    optimizer = spec.part()(spec, model)
    model[0].grad = torch.zeros(2, 3)
    optimizer.step()
    return sum(value.shape == model[0].shape for value in optimizer.state[model[0]].values() if torch.is_tensor(value))


def _kept_for_backward(model: nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Bytes that autograd keeps between the passes: each storage once, parameters, buffers and the batch not at all."""
    images = torch.empty(shape, device="meta", dtype=dtype)
    known = {tensor.untyped_storage()._cdata for tensor in (images, *model.parameters(), *model.buffers())}  # noqa: SLF001
    # The tensors are held on to, lest one that is freed hands its address on to another.
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor  # noqa: SLF001
        return tensor

    start_step(model, seed=0, step=0)
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        functional.cross_entropy(model(images), torch.empty(shape[0], device="meta", dtype=torch.long))
    return sum(tensor.untyped_storage().nbytes() for address, tensor in kept.items() if address not in known)
