"""How much memory a training has taken."""

from __future__ import annotations

import resource
import sys

import torch

MIB = 2**20


def peak_mib(device: torch.device) -> float:
    """The largest memory so far, in MiB: of torch's tensors on a GPU, of the whole process on the CPU.

    Example:
        >>> peak_mib(torch.device("cpu")) > 50
        True
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return largest / MIB if sys.platform == "darwin" else largest / 1024
