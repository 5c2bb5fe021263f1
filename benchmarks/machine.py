"""What a measurement stands beside: machine, versions and command."""

from __future__ import annotations

import os
import platform
import statistics
import sys
from pathlib import Path

import torch

from worker.child import environment
from worker.settings import Settings


def become_a_trainer() -> None:
    """Start this script anew in the environment that a worker gives its trainer, on one thread of the CPU.

    What counts is the allocator: in glibc's default setting a process may or may not pay thousands of page faults a
    step, and which of the two depends on what it has allocated before.
    """
    made = environment(Settings(device="cpu", threads=1), os.environ)
    if made != dict(os.environ):
        os.execve(sys.executable, [sys.executable, *sys.argv], made)
    torch.set_num_threads(1)


def describe() -> str:
    """Two lines on where and how this process measures."""
    cpus = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in cpus.read_text().splitlines() if line.startswith("model name")]
    name = names[0] if names else platform.processor()
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"machine: {name}, {os.cpu_count()} cores, load {load}; {platform.system()} {platform.release()}, "
        f"Python {platform.python_version()}, torch {torch.__version__}, {torch.get_num_threads()} thread(s)\n"
        f"command: {' '.join([Path(sys.executable).name, *sys.argv])}"
    )


def summary(values: list[float]) -> str:
    """Count, median and the quartiles on both sides of it."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"n={len(values)}, median {median:.3f} (quartiles {low:.3f} to {high:.3f})"


if __name__ == "__main__":
    print(describe())
