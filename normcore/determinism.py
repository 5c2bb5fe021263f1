"""A training's own global state of torch, so that neither it nor its caller moves the other's."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from normcore.records import Record


@dataclass(frozen=True, slots=True)
class GlobalState:
    """What torch keeps once per process, or per thread, and a training depends on or moves."""

    grad_enabled: bool
    deterministic: bool
    warn_only: bool
    cudnn_deterministic: bool
    cudnn_benchmark: bool
    cudnn_tf32: bool
    """Whether a GPU may round the factors of a float32 convolution to 10 bits."""
    matmul_tf32: bool
    """The same of a matrix product."""
    rng: Tensor
    """Of the CPU's global generator."""
    cuda_rng: Tensor | None
    """Of the GPU's global generator."""
    device: torch.device

    @classmethod
    def now(cls, device: torch.device) -> GlobalState:
        """The state as it is; of the GPUs only `device` counts."""
        return cls(
            grad_enabled=torch.is_grad_enabled(),
            deterministic=torch.are_deterministic_algorithms_enabled(),
            warn_only=torch.is_deterministic_algorithms_warn_only_enabled(),
            cudnn_deterministic=torch.backends.cudnn.deterministic,
            cudnn_benchmark=torch.backends.cudnn.benchmark,
            cudnn_tf32=torch.backends.cudnn.allow_tf32,
            matmul_tf32=torch.backends.cuda.matmul.allow_tf32,
            rng=torch.get_rng_state(),
            cuda_rng=torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
            device=device,
        )

    def apply(self) -> None:
        """Make the state of the process this one."""
        torch.set_grad_enabled(self.grad_enabled)
        torch.use_deterministic_algorithms(self.deterministic, warn_only=self.warn_only)
        torch.backends.cudnn.deterministic = self.cudnn_deterministic
        torch.backends.cudnn.benchmark = self.cudnn_benchmark
        torch.backends.cudnn.allow_tf32 = self.cudnn_tf32
        torch.backends.cuda.matmul.allow_tf32 = self.matmul_tf32
        torch.set_rng_state(self.rng)
        if self.cuda_rng is not None:
            torch.cuda.set_rng_state(self.cuda_rng, self.device)


def isolated(
    records: Generator[Record], *, deterministic: bool, device: torch.device, tf32: bool = False
) -> Iterator[Record]:
    """Run a training's generator in a global state of its own; whenever it waits, its caller's is back.

    So two trainings may take turns in one process, one deterministic and one not, and a caller's random numbers are
    those it would have drawn without a training. A switch takes some twenty microseconds and happens once per record.

    Args:
        records: The training.
        deterministic: Allow only algorithms that give the same bits every time.
        device: Where it computes.
        tf32: Let a GPU round the factors of float32 products to 10 bits.
    """
    if deterministic and device.type == "cuda":
        # cuBLAS reads it once, when it starts; without it torch refuses matrix products in deterministic mode.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    callers = GlobalState.now(device)
    own = GlobalState(
        grad_enabled=True,
        deterministic=deterministic,
        warn_only=False,
        cudnn_deterministic=deterministic,
        cudnn_benchmark=not deterministic,
        # Unless asked, float32 means float32: probes look at differences that the shorter factors would drown.
        cudnn_tf32=tf32,
        matmul_tf32=tf32,
        rng=callers.rng,
        cuda_rng=callers.cuda_rng,
        device=device,
    )
    try:
        while True:
            callers = GlobalState.now(device)
            own.apply()
            try:
                record = next(records, None)
            finally:
                own = GlobalState.now(device)
                callers.apply()
            if record is None:
                return
            yield record
    finally:
        records.close()
