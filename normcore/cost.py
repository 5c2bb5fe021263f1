"""What a training step costs, worked out on the meta device: nothing is allocated or computed."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from normcore.data.batch import Batch

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
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(3, 4, device="meta"), nn.Linear(4, 5, device="meta"))
        >>> flops_per_step(net, Batch(torch.empty(2, 3, device="meta"), torch.empty(2, device="meta")))
        336
    """
    with _Products() as products:
        batch.through(model).sum().backward()  # type: ignore[no-untyped-call]
    model.zero_grad()
    return int(products.flops)


class _Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the operations of all products in its scope, by torch's own formulas.

    `torch.utils.flop_counter.FlopCounterMode` does it too, with hooks on all modules of the process, which two previews
    at the same time would share.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Torch calls it for each operation."""
        made = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func._overloadpacket):  # noqa: SLF001
            self.flops += formula(*args, **(kwargs or {}), out_val=made)
        return made
