"""The processes of the other ranks of a training: started by the first, and gone with it.

`python -m normcore.companions` is such a process. It reads its order from standard input, computes its part of every
step, and tells nobody; the end of standard input is the end of the first rank, and its own.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, distributed

from normcore.data.folders import DataFolders
from normcore.ranks import Ranks
from normcore.records import Record, Snapshot
from normcore.refusal import Refusal
from normcore.spec import JobSpec

START_S = 300.0
"""How long a process may take to import torch, on a slow disk too."""
END_S = 10.0
"""How long a process may take to end after its last step, or to say why it ended."""


class RankLost(RuntimeError):
    """A process of a training over several devices ended before the training did."""


@dataclass(frozen=True, slots=True)
class Part:
    """What a rank is ordered to do."""

    ranks: Ranks
    spec: JobSpec
    device: torch.device
    folders: DataFolders | None
    resume: Snapshot | None
    others: Mapping[str, Mapping[str, Tensor]] | None
    """Last weights of other jobs."""
    meeting: Path
    """A folder that the ranks share."""
    threads: int
    memory_fraction: float
    """What the process may take of its GPU's memory, as much as the first rank of its own; 1 on a CPU."""


def accompanied(
    records: Generator[Record],
    spec: JobSpec,
    device: torch.device,
    folders: DataFolders | None,
    resume: Snapshot | None,
    others: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> Generator[Record]:
    """The records of a training's first rank, with the other ranks in processes of their own beside it.

    They share the caller's threads equally. While the generator runs, this process is in torch's default process group.

    Args:
        records: The first rank's training; it is begun in the process group.
        spec: The job, of more than one device.
        device: The first rank's. On GPUs the others take the visible ones after it, in a circle.
        folders: Where datasets lie.
        resume: What the training goes on from.
        others: Last weights of other jobs, which all ranks need.

    Raises:
        Refusal: There are fewer GPUs than the job asks for.
        RankLost: A process ended before the training did; a `MemoryError` where that was for want of memory.
    """
    devices = devices_of(device, spec.devices)
    if distributed.is_initialized():
        raise RuntimeError(
            f"a training over several devices makes a process group of its own, got devices {spec.devices} in a "
            f"process that is in one; leave that group, or end the other training, before"
        )
    threads, fraction = torch.get_num_threads(), _memory_fraction(devices[0])
    share, ended = max(1, threads // spec.devices), False
    with tempfile.TemporaryDirectory(prefix="normcore-ranks-") as folder:
        meeting = Path(folder)
        parts = [
            Part(Ranks(rank, spec.devices), spec, devices[rank], folders, resume, others, meeting, share, fraction)
            for rank in range(spec.devices)
        ]
        processes: dict[int, subprocess.Popen[bytes]] = {}
        try:
            for part in parts[1:]:
                processes[part.ranks.rank] = _start(part)
            for part in parts[1:]:
                _hand_over(part, processes[part.ranks.rank])
            _await_ready(parts, processes)
            torch.set_num_threads(share)
            with _in_group(parts[0]):
                yield from records
                ended = True
            for process in processes.values():
                with suppress(subprocess.TimeoutExpired):
                    process.wait(END_S)
        except (RuntimeError, OSError) as error:
            raise _reason(error, meeting, processes, spec.devices) from error
        finally:
            torch.set_num_threads(threads)
            for process in processes.values():
                process.kill()
                process.wait()
                with suppress(OSError):
                    process.stdin.close()  # type: ignore[union-attr]
            if not ended:
                records.close()


def devices_of(device: torch.device, count: int) -> list[torch.device]:
    """The devices of the ranks, the first rank's first.

    Raises:
        Refusal: There are fewer GPUs.

    Example:
        >>> devices_of(torch.device("cpu"), 2)
        [device(type='cpu'), device(type='cpu')]
    """
    if device.type == "cpu":
        return [device] * count
    there = torch.cuda.device_count()
    if there < count:
        raise Refusal(
            "too-few-devices",
            f"a job needs as many GPUs as it has devices, got devices {count} and {there} visible; lower devices, or "
            f"run it where there are more",
        )
    first = device.index or 0
    return [torch.device("cuda", (first + rank) % there) for rank in range(count)]


def _memory_fraction(device: torch.device) -> float:
    return 1.0 if device.type == "cpu" else torch.cuda.get_per_process_memory_fraction(device)


def _start(part: Part) -> subprocess.Popen[bytes]:
    surroundings = os.environ | {
        "OMP_NUM_THREADS": str(part.threads),
        # What this process imports, the other must find; -P: and nothing that lies about where it was started.
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    command = [sys.executable, "-P", "-m", "normcore.companions"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=surroundings)


def _hand_over(part: Part, process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    pickle.dump(part, process.stdin)
    process.stdin.flush()


def _await_ready(parts: list[Part], processes: dict[int, subprocess.Popen[bytes]]) -> None:
    """Wait until the others are about to join: one that died before would be waited for much longer."""
    deadline = time.monotonic() + START_S
    for part in parts[1:]:
        while not _ready(part).exists():
            if processes[part.ranks.rank].poll() is not None or time.monotonic() > deadline:
                raise RankLost(f"rank {part.ranks.rank} did not begin")
            time.sleep(0.01)


def _ready(part: Part) -> Path:
    return part.meeting / f"ready{part.ranks.rank}"


def _words(meeting: Path, rank: int) -> Path:
    return meeting / f"error{rank}"


@contextmanager
def _in_group(part: Part) -> Iterator[None]:
    """A scope in torch's default process group; of this machine, so over the loopback interface."""
    outside = os.environ.get("GLOO_SOCKET_IFNAME")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    if part.device.type == "cuda":
        torch.cuda.set_device(part.device)
    try:
        distributed.init_process_group(
            "gloo" if part.device.type == "cpu" else "cpu:gloo,cuda:nccl",
            init_method=f"file://{part.meeting}/store",
            rank=part.ranks.rank,
            world_size=part.ranks.count,
        )
    finally:
        if outside is None:
            del os.environ["GLOO_SOCKET_IFNAME"]
    try:
        yield
    finally:
        distributed.destroy_process_group()


def _reason(error: Exception, meeting: Path, processes: dict[int, subprocess.Popen[bytes]], count: int) -> Exception:
    """Why the training ended: where another rank ended first, that."""
    if isinstance(error, Refusal):
        return error
    deadline = time.monotonic() + END_S / 5
    while time.monotonic() < deadline:
        for rank, process in processes.items():
            if (code := process.poll()) is None:
                continue
            words = _words(meeting, rank)
            got = words.read_text(encoding="utf-8") if words.exists() else ""
            if got.startswith(("OutOfMemoryError", "MemoryError")):
                return MemoryError(f"rank {rank} of {count}: {got}")
            got = got or (signal.Signals(-code).name if code < 0 else f"exit code {code}")
            return RankLost(f"every rank must live as long as the training, got {got} in rank {rank} of {count}")
        time.sleep(0.01)
    return error


def main() -> None:
    """Be a rank other than the first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first rank's to answer
    part: Part = pickle.load(sys.stdin.buffer)  # noqa: S301 (from the process that started this one)
    threading.Thread(target=_die_with_first, daemon=True).start()
    from normcore.train import attend

    torch.set_num_threads(part.threads)
    if part.memory_fraction < 1:
        torch.cuda.set_per_process_memory_fraction(part.memory_fraction, part.device)
    _ready(part).touch()
    try:
        with _in_group(part):
            attend(
                part.spec,
                part.ranks,
                device=part.device,
                folders=part.folders,
                resume=part.resume,
                others=part.others,
            )
    except Exception as error:
        with suppress(OSError):
            words, draft = _words(part.meeting, part.ranks.rank), part.meeting / f".error{part.ranks.rank}"
            draft.write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
            draft.replace(words)
        raise


def _die_with_first() -> None:
    # By the descriptor: a lock on sys.stdin would be in the way of the interpreter's own ending.
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
