"""Pools of workers: by what they compute on and how much of it a job may use. Each pool has its own queue."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from worker.views import Reason

_NAME = re.compile(r"(cpu|cuda)(?:-(\d+))?(?:-(\d+))?")


@dataclass(frozen=True, slots=True)
class Pool:
    """Workers that can run the same jobs, so that it is all the same which of them hears of one."""

    gpus: int = 0
    """GPUs that a job may use; 0 where a worker has none."""
    processes: int = 1
    """Processes that a job may use on the CPU, which the workers with GPUs have too."""

    @classmethod
    def of(cls, device: str, *, gpus: int = 1, processes: int = 1) -> Self:
        """The pool of a worker that computes on a torch device; without a GPU `gpus` says nothing.

        Example:
            >>> Pool.of("cuda:1", gpus=2), Pool.of("cpu", processes=4)
            (Pool(gpus=2, processes=1), Pool(gpus=0, processes=4))
        """
        kind = device.partition(":")[0]
        if kind not in ("cpu", "cuda"):
            raise ValueError(f"a worker's device must be cpu or cuda, got {device!r}; resolve auto before you name it")
        if processes < 1 or (kind == "cuda" and gpus < 1):
            raise ValueError(f"a worker must let a job use one device at least, got gpus {gpus}, processes {processes}")
        return cls(gpus if kind == "cuda" else 0, processes)

    @classmethod
    def named(cls, name: str) -> Self:
        """The pool of a name.

        Example:
            >>> Pool.named("cpu-4"), Pool.named("cuda-2"), Pool.named("cuda-1-8")
            (Pool(gpus=0, processes=4), Pool(gpus=2, processes=1), Pool(gpus=1, processes=8))
        """
        found = _NAME.fullmatch(name)
        if found is None:
            raise ValueError(f"a pool's name must be such as cpu, cpu-4, cuda or cuda-2-4, got {name!r}")
        kind, first, second = found.groups()
        if kind == "cpu":
            return cls(0, int(first or 1))
        return cls(int(first or 1), int(second or 1))

    @property
    def name(self) -> str:
        """`cpu` and `cuda` where a job may use one device; the numbers behind say otherwise.

        Example:
            >>> [Pool(0, 1).name, Pool(0, 4).name, Pool(1, 1).name, Pool(2, 1).name, Pool(1, 8).name]
            ['cpu', 'cpu-4', 'cuda', 'cuda-2', 'cuda-1-8']
        """
        if not self.gpus:
            return "cpu" if self.processes == 1 else f"cpu-{self.processes}"
        if self.processes > 1:
            return f"cuda-{self.gpus}-{self.processes}"
        return "cuda" if self.gpus == 1 else f"cuda-{self.gpus}"

    def devices_for(self, device: str) -> int:
        """How many devices a job may have here that asks for `auto`, `cpu` or `cuda`; 0 where it cannot run.

        Example:
            >>> [Pool(gpus=2, processes=4).devices_for(device) for device in ("auto", "cpu", "cuda")]
            [2, 4, 2]
            >>> [Pool(gpus=0, processes=4).devices_for(device) for device in ("auto", "cpu", "cuda")]
            [4, 4, 0]
        """
        if device == "cpu":
            return self.processes
        return self.gpus if device == "cuda" or self.gpus else self.processes


def preferred(device: str, pools: Iterable[Pool]) -> list[Pool]:
    """Pools in the order in which a job should take them.

    A job that asks for `auto` takes a GPU first, one for `cpu` leaves the GPUs to others; of the rest it takes the
    smallest, so that the large ones are free for jobs that need them.

    Example:
        >>> pools = [Pool(0, 4), Pool(2, 1), Pool(0, 1), Pool(1, 1)]
        >>> [pool.name for pool in preferred("auto", pools)]
        ['cuda', 'cuda-2', 'cpu', 'cpu-4']
        >>> [pool.name for pool in preferred("cpu", pools)]
        ['cpu', 'cpu-4', 'cuda', 'cuda-2']
    """
    wants_gpu = device != "cpu"
    return sorted(pools, key=lambda pool: ((pool.gpus > 0) is not wants_gpu, pool.gpus, pool.processes))


def obstacle(device: str, devices: int, pools: Iterable[Pool]) -> Reason | None:
    """Why none of these pools can ever run a job; None where one can, as soon as one of its workers is free.

    Example:
        >>> obstacle("cpu", 4, [Pool(0, 1), Pool(0, 2)]).detail
        'waits for a worker that lets a job use 4 devices; the largest lets it use 2'
    """
    pools = list(pools)
    if not pools:
        return Reason("no-worker", "waits for a worker; none is alive")
    largest = max(pool.devices_for(device) for pool in pools)
    if largest >= devices:
        return None
    if not largest:
        return Reason("no-gpu", "waits for a worker with a GPU; those that are alive have none")
    return Reason(
        "too-few-devices",
        f"waits for a worker that lets a job use {devices} devices; the largest lets it use {largest}",
    )
