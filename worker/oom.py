"""Whether the kernel kills for want of memory: otherwise such a death looks like any other SIGKILL."""

from __future__ import annotations

from pathlib import Path

MEMORY_EVENTS = Path("/sys/fs/cgroup/memory.events")
"""Of the control group that a container sees as its own; not there outside containers, nor on other systems."""


def oom_kills() -> int:
    """How often the kernel has killed a process of this control group for want of memory; 0 where it cannot be told."""
    try:
        counts = dict(line.split() for line in MEMORY_EVENTS.read_text().splitlines())
        return int(counts.get("oom_kill", 0))
    except (OSError, ValueError):
        return 0
