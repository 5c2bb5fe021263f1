"""Where the processes of a worker stand, by py-spy: `python -m worker.stacks`, for a training that hangs. On Linux.

It looks from outside and asks nothing of them: a process that holds a lock or waits in C shows its stack too.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOMS = ("worker.", "normcore.")
"""What the modules begin with that a worker's processes were started as."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process that can be looked into."""

    pid: int
    command: str


def processes(proc: Path = Path("/proc")) -> list[Process]:
    """The worker's processes that can be seen from here, but not this one, by their ids."""
    found = []
    for folder in sorted((path for path in proc.iterdir() if path.name.isdigit()), key=lambda path: int(path.name)):
        try:
            words = (folder / "cmdline").read_text(errors="replace").rstrip("\0").split("\0")
        except OSError:
            continue  # it has ended meanwhile
        python = Path(words[0]).name.startswith("python")  # and not Docker's init, which names what it started too
        if python and any(word.startswith(ROOMS) for word in words) and "worker.stacks" not in words:
            found.append(Process(int(folder.name), " ".join(words)))
    return found


def main() -> int:
    """Print the stacks of all of them; the exit status is 1 where there is none, or one cannot be looked into."""
    seen = processes()
    if not seen:
        print("worker.stacks: no process of a worker can be seen from here; is the worker running?", file=sys.stderr)
        return 1
    failed = False
    for process in seen:
        print(f"== {process.pid}: {process.command}", flush=True)
        done = subprocess.run(["py-spy", "dump", "--pid", str(process.pid)], check=False)
        failed = failed or done.returncode != 0
    if failed:
        print(
            "worker.stacks: where looking is refused, /proc/sys/kernel/yama/ptrace_scope of the machine is 1 or more; "
            "root may: docker compose run --rm --no-deps --user root debug python -m worker.stacks",
            file=sys.stderr,
        )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
