"""Pools of workers: by what they compute on. Each pool has its own queue."""

from __future__ import annotations

POOLS = ("cuda", "cpu")
"""Every pool, the one that a job without a wish prefers first."""


def pool_of(device: str) -> str:
    """The pool of a worker that computes on a torch device.

    Example:
        >>> pool_of("cuda:1"), pool_of("cpu")
        ('cuda', 'cpu')
    """
    kind = device.partition(":")[0]
    if kind not in POOLS:
        raise ValueError(f"a worker's device must be cpu or cuda, got {device!r}; resolve auto before you name it")
    return kind


def pools_for(device: str) -> tuple[str, ...]:
    """The pools whose workers can run a job that asks for a device, the best first. A GPU worker can use its CPU.

    Example:
        >>> pools_for("auto"), pools_for("cuda"), pools_for("cpu")
        (('cuda', 'cpu'), ('cuda',), ('cpu', 'cuda'))
    """
    return {"auto": ("cuda", "cpu"), "cuda": ("cuda",), "cpu": ("cpu", "cuda")}[device]
