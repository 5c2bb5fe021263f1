"""Streams of random numbers that hold no state: a stream's name is its position.

Every draw of a training has a path, such as `("init", "blocks.0.conv.weight")` or `("noise", layer_index, step)`, and
the seed of the job. So two arms that differ in one part see the same everything else, and resuming or replaying a step
needs no generator's state.
"""

from __future__ import annotations

import hashlib

import torch


def stream_seed(seed: int, *names: str | int) -> int:
    """The seed of a named stream: 63 bits of the SHA-256 of its path.

    The path is hashed as Python writes it: `("ab", "c")` and `("a", "bc")`, or `1` and `"1"`, are different streams.
    Costs about two microseconds.

    Example:
        >>> stream_seed(0, "order", 3) == stream_seed(0, "order", 3)
        True
        >>> stream_seed(0, "order", 3) == stream_seed(0, "order", 4)
        False
    """
    digest = hashlib.sha256(repr((seed, *names)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(device: torch.device | str, seed: int, *names: str | int) -> torch.Generator:
    """A fresh generator at the start of a named stream; the global generators are left alone.

    The same stream gives other numbers on another kind of device.

    Example:
        >>> draw = [torch.rand(1, generator=generator("cpu", 0, "noise", 0, 7)) for _ in range(2)]
        >>> bool(draw[0] == draw[1])
        True
    """
    return torch.Generator(device).manual_seed(stream_seed(seed, *names))
