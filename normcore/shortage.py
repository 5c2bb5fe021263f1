"""What to say where a training ran out of memory: how much it would take, and what would fit."""

from __future__ import annotations

import resource
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from pydantic import ValidationError

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
    """The estimate, the batch size or the accumulation that would fit, and what each would do to the norm.

    Args:
        spec: The job that ran out of memory.
        device: Where.
        available: MiB that there were for it.

    Example:
        >>> spec = JobSpec.model_validate({"model": {"kind": "vgg"}, "data": {"kind": "digits"}})
        >>> smaller, micro_batches = remedy(spec, "cuda", 280.0).split("; ")[1:]
        >>> smaller.partition(": ")[2]
        'batch norm would then take its statistics over 64 samples instead of 128'
        >>> micro_batches.partition(", ")[0]
        'or accumulation 2 with the batch_size as it is (207 MiB)'
        >>> micro_batches.partition(": ")[2].partition(", ")[2]
        'and running statistics move 2 times an update'
    """
    told = f"the estimate is {memory_mib(spec, device):,.0f} MiB of {available:,.0f} MiB"
    if HELD_BACK[device] > 1:
        told += f", of which the allocator may take {HELD_BACK[device]:g} times as much"
    fits = partial(_first_that_fits, spec, device=device, available=available)
    if smaller := fits(smaller_batches(spec)):
        job, needed = smaller
        told += f"; a batch_size of {job.batch_size} would fit ({needed:,.0f} MiB): {_norms(spec, job)}"
    if parted := fits(more_micro_batches(spec)):
        job, needed = parted
        told += (
            f"; {'or ' if smaller else ''}accumulation {job.accumulation} with the batch_size as it is "
            f"({needed:,.0f} MiB), for updates of {job.accumulation} micro-batches of {_at_once(job)} samples each: "
            f"{_norms(spec, job)}"
        )
    if smaller or parted:
        return told
    return f"{told}; no smaller batch_size would fit, nor would micro-batches: lower the model's width"


def smaller_batches(spec: JobSpec) -> Iterator[Mapping[str, int | None]]:
    """Half the batch size, a quarter, ..., each such that devices and micro-batches still divide it."""
    parts = spec.devices * spec.accumulation
    size = spec.batch_size // 2
    while size >= parts:
        yield {"batch_size": size - size % parts, "batch_size_per_device": None}
        size //= 2


def more_micro_batches(spec: JobSpec) -> Iterator[Mapping[str, int | None]]:
    """Each accumulation above the present one that divides the batch of a device, the smallest first."""
    per_device = spec.batch_size // spec.devices
    yield from (
        {"accumulation": count} for count in range(spec.accumulation + 1, per_device + 1) if per_device % count == 0
    )


def _first_that_fits(
    spec: JobSpec, changes: Iterable[Mapping[str, int | None]], *, device: Literal["cpu", "cuda"], available: float
) -> tuple[JobSpec, float] | None:
    """The job with the first of the changes that it can be built with and that fits, and the MiB it then needs."""
    for change in changes:
        try:
            job = JobSpec.model_validate(spec.model_dump() | dict(change))
            needed = memory_mib(job, device)
        except (ValidationError, Refusal):
            continue
        if needed * HELD_BACK[device] <= available:
            return job, needed
    return None


def _norms(spec: JobSpec, job: JobSpec) -> str:
    """What fewer samples at once do to the statistics of the norm."""
    knobs = spec.norm.knobs()
    norm = f"{spec.norm.kind} norm"
    parted = job.accumulation > spec.accumulation
    if spec.norm.kind == "none":
        return "there is no norm to notice it" if parted else "without a norm only the gradient becomes noisier"
    claims = spec.norm.part()(4, **knobs | {name: 2 for name in knobs if name in ("num_groups", "channels_per_group")})
    if claims.claims.statistics not in ("batch", "running"):
        return f"{norm} does not depend on the batch size"
    moving = f", and running statistics move {job.accumulation} times an update" if parted else ""
    if virtual := knobs.get("virtual_batch_size"):
        return (
            f"{norm} still takes its statistics over virtual batches of {virtual} samples, which must divide it{moving}"
        )
    together = spec.devices if spec.norm.kind == "sync" else 1
    before, after = _at_once(spec) * together, _at_once(job) * together
    return f"{norm} would then take its statistics over {after} samples instead of {before}{moving}"


def _at_once(spec: JobSpec) -> int:
    """Samples that go through a device's model at once."""
    return spec.batch_size // (spec.devices * spec.accumulation)
