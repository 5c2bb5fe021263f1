"""What comes next, said by a snapshot, so that whoever goes on from it can tell whether that is what came."""

from __future__ import annotations

import torch
from torch import Tensor

from normcore.learner import Learner
from normcore.records import Remark, Snapshot

NEXT_LOSS = "next.loss"
"""The tensor of a snapshot that holds the loss of the step after it."""


def next_loss(learner: Learner, step: int) -> Tensor:
    """The loss that update number `step`, the next one, will see: a scalar on the CPU, to its last bit.

    It depends on every parameter, on what norms remember, on the batch and on what noise and dropout draw for it. One
    forward pass, which leaves no trace: buffers and torch's global generators are put back.
    """
    buffers = list(learner.model.buffers())
    devices = {buffer.device.index for buffer in [*learner.model.parameters(), *buffers] if buffer.is_cuda}
    kept = [buffer.clone() for buffer in buffers]
    with torch.random.fork_rng(devices=devices):
        try:
            return learner.replay(step)().detach().to("cpu", copy=True)
        finally:
            with torch.no_grad():
                for buffer, value in zip(buffers, kept, strict=True):
                    buffer.copy_(value)


def verify(snapshot: Snapshot, loss: Tensor) -> Remark | None:
    """Whether the first step after a snapshot had the loss that the snapshot foretold, to the last bit.

    None where the snapshot foretells nothing, because the training was not deterministic.
    """
    foretold, step = snapshot.tensors.get(NEXT_LOSS), snapshot.step + 1
    if foretold is None:
        return None
    seen = loss.detach().cpu()
    if _bits(seen) == _bits(foretold):
        return Remark(
            step,
            "resume_verified",
            f"the loss of step {step}, {seen.item():.9g}, is bit for bit the one that the checkpoint of step "
            f"{snapshot.step} foretold",
        )
    return Remark(
        step,
        "resume_differs",
        f"the loss of step {step} must be the one that the checkpoint of step {snapshot.step} foretold, "
        f"{foretold.item():.9g} ({_hex(foretold)}), got {seen.item():.9g} ({_hex(seen)}); another machine, number of "
        f"threads or version of torch computes in another order",
    )


def _bits(scalar: Tensor) -> tuple[torch.dtype, bytes]:
    return scalar.dtype, scalar.numpy().tobytes()


def _hex(scalar: Tensor) -> str:
    return float(scalar.item()).hex()
