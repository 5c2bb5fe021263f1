"""A trainer process, seen by its worker."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from time import sleep

from worker.settings import Settings
from worker.wire import Message, Order, Ready, decode

PIPE_BYTES = 1 << 20
"""What a trainer may say before it must wait for its worker: some twenty thousand points."""

_STACKS_S = 0.5
_LEAVE_S = 10.0


class Child:
    """A trainer in a session and process group of its own. It reads `worker.trainer` for its part.

    Spawn it from a thread that outlives it: the kernel kills it when that thread ends.
    """

    def __init__(self, settings: Settings) -> None:
        records, into = os.pipe()
        with contextlib.suppress(AttributeError, OSError):  # a wider pipe is Linux' own, and has a limit of its own
            fcntl.fcntl(records, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        # -P: a folder named `worker` where the worker was started must not be taken for ours.
        command = [sys.executable, "-P", "-m", "worker.trainer", "--records", str(into), "--parent", str(os.getpid())]
        command += ["--device", settings.device.partition(":")[0], "--cache-dir", str(settings.state_dir / "cache")]
        command += ["--slots", str(settings.slots)]
        self._records = os.fdopen(records, "rb")
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            pass_fds=(into,),
            env=environment(settings, os.environ),
            start_new_session=True,
        )
        os.close(into)
        self.ready: Ready | None = None

    @property
    def pid(self) -> int:
        """The process id, which is the process group's too."""
        return self._process.pid

    def await_ready(self, timeout_s: float) -> Ready | None:
        """Wait until the trainer is warm; None where it ended or took too long."""
        if select.select([self._records], [], [], timeout_s)[0]:
            message = next(self.messages(), None)
            self.ready = message if isinstance(message, Ready) else None
        return self.ready

    def order(self, order: Order) -> None:
        """Have a job trained.

        Raises:
            BrokenPipeError: the trainer has ended meanwhile.
        """
        assert self._process.stdin is not None
        self._process.stdin.write(order.line())
        self._process.stdin.flush()

    def messages(self) -> Iterator[Message]:
        """What the trainer says, until it ends. A line that its death cut off was never said."""
        for line in self._records:
            if not line.endswith(b"\n"):
                return
            yield decode(line)

    def alive(self) -> bool:
        """Whether the trainer runs."""
        return self._process.poll() is None

    def leave(self) -> int:
        """Let a trainer end that has said its last word, and what it started with it; the exit code.

        Negative for a signal.
        """
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_LEAVE_S)
        self.kill()
        return self._process.wait()

    def stop(self) -> None:
        """Ask the trainer to stop at its next step, after a checkpoint."""
        self._process.send_signal(signal.SIGTERM)

    def dump_stacks(self) -> None:
        """Have the trainer write to the log where it hangs; a moment for it to do so."""
        self._process.send_signal(signal.SIGUSR1)
        sleep(_STACKS_S)

    def kill(self) -> None:
        """End the trainer and whatever it started, at once. Harmless when they have ended."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Kill what is left, and give back the descriptors and the process's entry."""
        self.kill()
        self._process.wait()
        self._records.close()
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()


def environment(settings: Settings, outside: Mapping[str, str]) -> dict[str, str]:
    """The environment of a trainer: its threads, its GPU, and an allocator that keeps what it has.

    What is set outside stays, save for the threads and the GPU, which the settings decide. Where several trainings
    share the machine in slots, each computes with its share of the cores.

    Example:
        >>> made = environment(Settings(device="cuda:1", threads=2), {"CUDA_VISIBLE_DEVICES": "4,5,6"})
        >>> made["CUDA_VISIBLE_DEVICES"], made["OMP_NUM_THREADS"]
        ('5', '2')
    """
    defaults = {
        # PyTorch frees and takes blocks at every operation; glibc would give big ones back to the kernel each time.
        "MALLOC_MMAP_THRESHOLD_": "4294967296",
        "MALLOC_TRIM_THRESHOLD_": "8589934592",
        "MALLOC_TOP_PAD_": "268435456",
        # OpenMP's threads otherwise spin while they wait for one another; where anything else wants the cores, as
        # MLflow and the API do, a step then takes several times as long.
        "OMP_WAIT_POLICY": "PASSIVE",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        # Deterministic matrix products need it before CUDA starts.
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }
    made = defaults | dict(outside)
    made["OMP_NUM_THREADS"] = str(settings.threads or max(1, len(os.sched_getaffinity(0)) // settings.slots))
    if settings.device == "cpu":
        made["CUDA_VISIBLE_DEVICES"] = ""
    elif ":" in settings.device:
        index = int(settings.device.partition(":")[2])
        visible = [name for name in outside.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        made["CUDA_VISIBLE_DEVICES"] = visible[index] if index < len(visible) else str(index)
    return made
