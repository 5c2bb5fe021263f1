"""One training over several devices: what each of its processes, the ranks, knows of the others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.autograd import Variable

from normcore.data.batch import Batch
from normcore.norms.sync import SyncBatchNorm
from normcore.records import Remark
from normcore.seeds import stream_seed
from normcore.statistics.layers import has_running_statistics


@dataclass(frozen=True, slots=True)
class Ranks:
    """A process's place among the ranks of a training; every method of a single rank does nothing.

    Each rank computes with its rows of the same global batch, and each makes the same update:

    - a loss is that of the global batch, and every backward pass of it leaves the gradients of the global batch in the
      parameters' `.grad`, whoever asked for it: the loop, or a probe that replays the step;
    - what the clock, a signal or an evaluation decides is decided by the first rank and told to the others, so that all
      do the same at the same step, and none waits for one that has left;
    - norms whose training depends on what they remember begin each step with what the first rank's remember.

    So the ranks' parameters are the same bits after every step, and a snapshot of the first is one of all.

    Why not `torch.nn.parallel.DistributedDataParallel`: it reduces only what went through its own `forward`, which a
    probe's replay does not; and it lays its buckets out anew after the first backward pass, so the first step after a
    resume adds up in another order than the same step of a training that was never interrupted. One flat sum after the
    backward pass has one order always. What it gives up is reducing while the backward pass still runs.

    Args:
        rank: This process's number, from 0.
        count: How many there are.

    Example:
        >>> Ranks(1, 2).rows(Batch(torch.arange(6.0), torch.arange(6))).labels
        tensor([3, 4, 5])
    """

    rank: int = 0
    count: int = 1

    def seed(self, seed: int) -> int:
        """The seed that noise and dropout draw by here: the first rank draws what a single process would."""
        return seed if self.rank == 0 else stream_seed(seed, "rank", self.rank)

    def rows(self, batch: Batch) -> Batch:
        """This rank's part of a global batch: the rank-th of equal parts, in order."""
        if self.count == 1:
            return batch
        size = len(batch) // self.count
        mine = slice(self.rank * size, (self.rank + 1) * size)
        mask = None if batch.mask is None else batch.mask[mine]
        return Batch(batch.inputs[mine], batch.labels[mine], mask)

    def joined(self, loss: Tensor, model: nn.Module, *, mean: bool) -> Tensor:
        """The loss of the global batch from those of the ranks, whose backward passes reduce the gradients too.

        Args:
            loss: This rank's.
            model: Whose parameters' `.grad` are reduced at the end of each backward pass; gradients that stood there
                before must be the same on all ranks, as those of earlier micro-batches are.
            mean: Whether the loss is a mean over samples, and not a sum.
        """
        if self.count == 1:
            return loss
        joined: Tensor = _Joined.apply(loss, model, self.count, mean)  # type: ignore[no-untyped-call]
        return joined

    def total(self, values: Tensor) -> Tensor:
        """The sum of a tensor over the ranks."""
        if self.count > 1:
            distributed.all_reduce(values)
        return values

    def average(self, tensors: list[Tensor]) -> None:
        """Replace tensors by their means over the ranks, in place."""
        if self.count > 1 and tensors:
            with torch.no_grad():
                _flat(tensors, distributed.all_reduce)
                torch._foreach_div_(tensors, self.count)

    def agree(self, *values: float) -> tuple[float, ...]:
        """What the first rank says. Goes from host to host and waits for no device."""
        if self.count == 1:
            return values
        said = torch.tensor(values, dtype=torch.float64)
        distributed.broadcast(said, src=0)
        return tuple(said.tolist())

    def follow(self, tensors: Iterable[Tensor]) -> None:
        """Give tensors the values that the first rank's have."""
        if self.count > 1:
            with torch.no_grad():
                _flat(list(tensors), partial(distributed.broadcast, src=0))

    def first_layer(self, model: nn.Module, path: str | None) -> str | None:
        """Of the layers that the ranks name, the first in the order of the model's modules."""
        if self.count == 1:
            return path
        paths = [name for name, _ in model.named_modules()]
        place = torch.tensor(len(paths) if path is None else paths.index(path))
        distributed.all_reduce(place, distributed.ReduceOp.MIN)
        return paths[int(place)] if place < len(paths) else None

    def remarks(self, model: nn.Module, step: int) -> Iterator[Remark]:
        """What a reader should know of a training over several devices."""
        unlike = [
            module
            for module in model.modules()
            if has_running_statistics(module) and not isinstance(module, SyncBatchNorm)
        ]
        if self.count > 1 and unlike:
            yield Remark(
                step,
                "statistics-of-one-device",
                f"each of the {self.count} devices normalizes its own part of the batch; running statistics, which "
                f"evaluations and checkpoints use, are those of the first device's parts",
            )


ALONE = Ranks()
"""A training in a single process."""


class _Joined(torch.autograd.Function):
    """The mean or the sum of the ranks' losses, whose backward pass ends with a reduction of the gradients."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, model: nn.Module, count: int, mean: bool) -> Tensor:  # noqa: FBT001
        """The loss of the global batch."""
        ctx.model, ctx.count, ctx.mean = model, count, mean
        joined = loss.detach().clone()
        distributed.all_reduce(joined)
        return joined.div_(count) if mean else joined

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        """The upstream gradient; gradients of parameters are averaged when all of them are there."""
        Variable._execution_engine.queue_callback(partial(_average, ctx.model, ctx.count))  # noqa: SLF001
        # Always a mean over ranks, of gradients that were made larger where a sum is wanted: so gradients of earlier
        # micro-batches, which are the same on all ranks, stay as they are.
        return gradient if ctx.mean else gradient * ctx.count, None, None, None


def _average(model: nn.Module, count: int) -> None:
    Ranks(count=count).average([parameter.grad for parameter in model.parameters() if parameter.grad is not None])


def _flat(tensors: list[Tensor], exchange: Any) -> None:
    """Exchange tensors as one flat tensor for each dtype, in place."""
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        alike = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.reshape(-1) for tensor in alike])
        exchange(flat)
        for tensor, values in zip(alike, torch.split(flat, [tensor.numel() for tensor in alike]), strict=True):
            tensor.copy_(values.view(tensor.shape))
