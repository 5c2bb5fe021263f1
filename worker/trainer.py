"""The trainer, `python -m worker.trainer`: a process that warms up, takes one order, trains, and ends.

It is spawned by a worker (`worker.child`), which reads its messages from a pipe and talks to it by one line on standard
input and by signals. SIGTERM asks it to stop at the next step, after a checkpoint. It dies with its worker: by the
kernel's hand on Linux, and everywhere because the end of standard input is the end of the worker.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from worker.exits import Exit
from worker.wire import Message, Order, Ready, encode

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Warm up, wait for the order, carry it out, and leave with an exit code of `worker.exits.Exit`."""
    parser = argparse.ArgumentParser(description="Train one job for a worker")
    parser.add_argument("--records", type=int, required=True, help="the descriptor that messages are written to")
    parser.add_argument("--parent", type=int, required=True, help="the worker's process id")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--cache-dir", type=Path, required=True)
    parser.add_argument("--slots", type=int, default=1, help="trainings at once on each GPU")
    arguments = parser.parse_args()
    die_with(arguments.parent)
    os.set_inheritable(arguments.records, False)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1)  # the worker asks for the stacks of a training that hangs
    stop = Stop()
    signal.signal(signal.SIGTERM, stop.ask)
    orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
    threading.Thread(target=listen, args=(orders,), daemon=True).start()
    pipe = os.fdopen(arguments.records, "wb")

    def say(message: Message) -> None:
        pipe.write(encode(message))
        pipe.flush()

    device = warm_up(arguments.device, arguments.cache_dir, arguments.slots)
    say(Ready(device, facts(device), _gpus(device)))
    order = orders.get()
    stop.waiting = False
    # Straight out: nothing is left to be saved, and taking Python and CUDA apart in good order takes a while.
    os._exit(carry_out(order, device, say, stop))


class Stop:
    """Whether the worker has asked the training to stop. A trainer that has not begun just leaves."""

    def __init__(self) -> None:
        self.asked = False
        self.waiting = True

    def ask(self, *_: Any) -> None:
        """The signal handler."""
        self.asked = True
        if self.waiting:
            sys.exit(Exit.STOPPED)

    def __call__(self) -> bool:
        """Whether it was asked."""
        return self.asked


def die_with(parent: int) -> None:
    """Have the kernel kill this process when the thread that spawned it ends."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the worker was gone before its trainer began")


def listen(orders: queue.SimpleQueue[Order]) -> None:
    """Hand on the order, then wait for the end of standard input, which is the end of the worker."""
    # Unbuffered, and by the descriptor: a lock on sys.stdin would be in the way of the interpreter's own ending.
    with os.fdopen(sys.stdin.fileno(), "rb", closefd=False) as stdin:
        for line in stdin:
            orders.put(Order.of(line))
    os.kill(os.getpid(), signal.SIGKILL)


def warm_up(wanted: str, cache_dir: Path, slots: int = 1) -> str:
    """Import everything that a training needs by doing one: a step of a tiny net with a probe and its figure.

    The first optimizer alone takes about a second, and so does the first convolution on a GPU. `train` puts torch's
    random numbers back as they were, so nothing of this shows in the job.
    """
    import torch

    from normcore.data.folders import DataFolders
    from normcore.menu.datasets import DigitsSpec
    from normcore.menu.models import VggSpec
    from normcore.menu.smoothness_probes import LandscapeProbeSpec
    from normcore.spec import JobSpec
    from normcore.train import train

    device = "cuda:0" if wanted != "cpu" and torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and device == "cpu":
        sys.exit("the worker's device must be there, got cuda without a GPU that torch can use; set NORMCORE_DEVICE")
    if device != "cpu":
        keep_to_share(slots)
    probes = (LandscapeProbeSpec(every=1, points=2),)
    spec = JobSpec(model=VggSpec(width=0.0625), data=DigitsSpec(), batch_size=8, steps=1, probes=probes)
    for _ in train(spec, device=device, folders=DataFolders(cache_dir=cache_dir)):
        pass
    return device


def keep_to_share(slots: int) -> None:
    """Have torch take no more of each visible GPU than one of `slots` equal parts of its memory.

    What it takes beyond ends in torch's own `OutOfMemoryError` in this process, not in that of its neighbours. CUDA's
    context, some hundreds of MiB per process, is not counted by torch and comes on top.
    """
    import torch

    if slots > 1:
        for index in range(torch.cuda.device_count()):
            torch.cuda.set_per_process_memory_fraction(1 / slots, index)


def facts(device: str) -> dict[str, str]:
    """What is worth knowing later about where a training ran."""
    import platform

    import torch

    hardware = torch.cuda.get_device_name(device) if device != "cpu" else f"{torch.get_num_threads()} threads"
    return {
        "device": device,
        "hardware": hardware,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "host": platform.node(),
    }


def _gpus(device: str) -> int:
    import torch

    return 0 if device == "cpu" else torch.cuda.device_count()


def carry_out(order: Order, device: str, say: Callable[[Message], None], stop: Callable[[], bool]) -> int:
    """Train as ordered and tell everything; the exit code."""
    from normcore.shortage import available_mib, remedy
    from normcore.spec import JobSpec
    from worker.failures import failure_of
    from worker.training import run

    on: Literal["cpu", "cuda"] = "cpu" if device == "cpu" else "cuda"
    available = available_mib(on)
    try:
        return run(order, device, say, stop)
    except BrokenPipeError:
        raise  # the worker is gone, and with it everyone who would care
    except Exception as error:  # noqa: BLE001 - whatever a training raises is the answer to its order
        traceback.print_exc()
        code, failed = failure_of(error, lambda: remedy(JobSpec.model_validate_json(order.spec), on, available))
        with suppress(BrokenPipeError):
            say(failed)
        return code


if __name__ == "__main__":
    main()
