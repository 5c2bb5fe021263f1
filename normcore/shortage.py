"""What to say where a training ran out of memory: how much it would take, and what would fit."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Literal

import torch

from normcore.memory import MIB
from normcore.refusal import Refusal
from normcore.rehearsal import memory_mib
from normcore.spec import JobSpec

HELD_BACK = {"cpu": 2.0, "cuda": 1.1}
"""What an allocator is taken to need for each byte it is asked for, holes included. On a CPU small nets were seen to
take 1.3 to 3.5 times as much, so this is a middle and no bound; on a GPU it is an assumption."""

_LIMITS = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))


def available_mib(device: Literal["cpu", "cuda"]) -> float:
    """Memory that a training could still take: of the GPU and of this process's share of it, or of the host, the
    control group and the process's limit.

    Example:
        >>> available_mib("cpu") > 0
        True
    """
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        share = torch.cuda.get_per_process_memory_fraction() * total
        return min(free, share - torch.cuda.memory_reserved()) / MIB
    found = []
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    mine, host = Path("/proc/self/statm"), Path("/proc/meminfo")
    if limit != resource.RLIM_INFINITY and mine.exists():
        found.append(limit - int(mine.read_text().split()[0]) * resource.getpagesize())
    if host.exists():
        lines = dict(line.split(":") for line in host.read_text().splitlines())
        found.append(int(lines["MemAvailable"].split()[0]) * 1024)
    for most, taken in _LIMITS:
        files = [Path("/sys/fs/cgroup") / name for name in (most, taken)]
        if all(file.exists() for file in files) and (text := files[0].read_text().strip()) != "max":
            found.append(int(text) - int(files[1].read_text()))
    return min(found) / MIB if found else float("inf")


def remedy(spec: JobSpec, device: Literal["cpu", "cuda"], available: float) -> str:
    """The estimate, the batch size that would fit, and what that would do to the norm.

    Args:
        spec: The job that ran out of memory.
        device: Where.
        available: MiB that there were for it.

    Example:
        >>> spec = JobSpec.model_validate({"model": {"kind": "vgg"}, "data": {"kind": "digits"}})
        >>> remedy(spec, "cuda", 400.0).rpartition("; ")[2]
        'batch norm would then take its statistics over 64 samples instead of 128'
    """
    told = f"the estimate is {memory_mib(spec, device):,.0f} MiB of {available:,.0f} MiB"
    if HELD_BACK[device] > 1:
        told += f", of which the allocator may take {HELD_BACK[device]:g} times as much"
    size = spec.batch_size // 2
    while size >= spec.devices:
        smaller = spec.model_copy(update={"batch_size": size - size % spec.devices, "batch_size_per_device": None})
        try:
            needed = memory_mib(smaller, device)
        except Refusal:
            break
        if needed * HELD_BACK[device] <= available:
            return (
                f"{told}; a batch_size of {smaller.batch_size} would fit ({needed:,.0f} MiB); {_norms(spec, smaller)}"
            )
        size //= 2
    return f"{told}; no smaller batch_size would fit: lower the model's width"


def _norms(spec: JobSpec, smaller: JobSpec) -> str:
    """What a smaller batch does to the statistics of the norm."""
    knobs = spec.norm.knobs()
    norm = f"{spec.norm.kind} norm"
    if spec.norm.kind == "none":
        return "without a norm only the gradient becomes noisier"
    claims = spec.norm.part()(4, **knobs | {name: 2 for name in knobs if name in ("num_groups", "channels_per_group")})
    if claims.claims.statistics not in ("batch", "running"):
        return f"{norm} does not depend on the batch size"
    if virtual := knobs.get("virtual_batch_size"):
        return f"{norm} still takes its statistics over virtual batches of {virtual} samples, which must divide it"
    over = 1 if spec.norm.kind == "sync" else spec.devices
    before, after = spec.batch_size // over, smaller.batch_size // over
    return f"{norm} would then take its statistics over {after} samples instead of {before}"
