"""Work for a laboratory on another machine: `python -m worker.join`, and `normcore join`.

A tunnel to the laboratory's gate, and with it a worker like any other, which sees the laboratory's database, queue
and MLflow on ports of this machine. The tunnel stays until the worker has ended: its last checkpoint and its last words
go through it. The worker's state is this machine's own.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from worker.endpoint import Endpoint
from worker.machine_key import BadKey, MachineKey
from worker.settings import Settings, settings
from worker.tunnel import Refused, Tunnel

REFUSED = 2
"""The exit status when there is nothing to join."""
PR_SET_PDEATHSIG = 1
WORKER = (sys.executable, "-m", "worker.run")

log = logging.getLogger("normcore.join")


def main(config: Settings, command: Sequence[str] = WORKER) -> int:
    """Join, and work until SIGTERM or SIGINT.

    Args:
        config: Names the laboratory and holds the machine's key.
        command: The worker.

    Returns:
        The worker's exit status; 2 where this machine cannot join.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("asyncssh").setLevel(logging.WARNING)
    try:
        gate, key = _asked(config)
        return asyncio.run(_join(gate, key, config, command))
    except (ValueError, Refused) as error:
        log.error("%s", error)  # noqa: TRY400 - it says all there is to know
        return REFUSED


def environment(key: MachineKey, here: Sequence[Endpoint], config: Settings) -> dict[str, str]:
    """The settings of a worker that reaches the laboratory at these ports of this machine.

    Args:
        key: The machine's.
        here: Where the database, the queue and MLflow are reached.
        config: The machine's own settings.
    """
    database, queue, mlflow = here
    return {
        "NORMCORE_DATABASE_URL": database.instead_in(key.database_url),
        "NORMCORE_REDIS_URL": queue.instead_in(key.redis_url),
        "NORMCORE_MLFLOW_URL": mlflow.instead_in(key.mlflow_url),
        "NORMCORE_MLFLOW_PUBLIC_URL": key.mlflow_public_url,
        "NORMCORE_MLFLOW_EXPERIMENT": key.mlflow_experiment,
        "NORMCORE_WORKER_NAME": f"{key.name}/{config.worker_name}",
    }


def _asked(config: Settings) -> tuple[Endpoint, MachineKey]:
    if config.laboratory is None or config.machine_key is None:
        missing = "NORMCORE_LABORATORY" if config.laboratory is None else "NORMCORE_MACHINE_KEY"
        raise BadKey(
            f"a machine that joins must be told where the laboratory's gate is, and have a key to it: {missing} is not "
            "set; `make machine NAME=...` in the laboratory prints the key"
        )
    gate = Endpoint.typed(config.laboratory, port=Settings.model_fields["gate_port"].default)
    return gate, MachineKey.of(config.machine_key.get_secret_value())


async def _join(gate: Endpoint, key: MachineKey, config: Settings, command: Sequence[str]) -> int:
    endpoints = [Endpoint.of(url) for url in (key.database_url, key.redis_url, key.mlflow_url)]
    async with Tunnel(gate, key, endpoints) as tunnel:
        asked: asyncio.Queue[int] = asyncio.Queue()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, asked.put_nowait, number)
        keeping = asyncio.create_task(tunnel.keep())
        try:
            if not await _inside(tunnel, keeping, asked):
                return 0
            env = {name: value for name, value in os.environ.items() if name != "NORMCORE_MACHINE_KEY"}
            return await _work(command, env | environment(key, tunnel.here, config), keeping, asked)
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)


async def _inside(tunnel: Tunnel, keeping: asyncio.Task[NoReturn], asked: asyncio.Queue[int]) -> bool:
    """Wait until the laboratory has let this machine in; False where the process is to end before that."""
    up, stop = asyncio.create_task(tunnel.up.wait()), asyncio.create_task(asked.get())
    await asyncio.wait([keeping, up, stop], return_when=asyncio.FIRST_COMPLETED)
    for task in (up, stop):
        task.cancel()
    if keeping.done():
        keeping.result()
    return not stop.done()


async def _work(
    command: Sequence[str], env: Mapping[str, str], keeping: asyncio.Task[NoReturn], asked: asyncio.Queue[int]
) -> int:
    """Run the worker to its end, and hand on to it what this process is asked; its exit status."""
    # A session of its own: a terminal's Ctrl-C comes from here, once.
    child = await asyncio.create_subprocess_exec(
        *command,
        env=env,
        start_new_session=True,
        preexec_fn=_die_with_parent(os.getpid()),  # it takes no lock
    )
    ended, stop = asyncio.create_task(child.wait()), asyncio.create_task(asked.get())
    try:
        while not ended.done():
            await asyncio.wait([ended, stop, keeping], return_when=asyncio.FIRST_COMPLETED)
            if stop.done() and not ended.done():
                child.send_signal(stop.result())
                stop = asyncio.create_task(asked.get())
            elif keeping.done() and not ended.done():
                # Nothing of the laboratory can be reached any more. The training still writes its checkpoint here.
                child.terminate()
                await ended
                keeping.result()
    finally:
        stop.cancel()
    status = ended.result()
    return status if status >= 0 else 128 - status


def _die_with_parent(parent: int) -> Callable[[], None] | None:
    """What a child does before it begins: have the kernel ask it to end when this process dies. On Linux only."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl

    def ask() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    return ask


if __name__ == "__main__":
    sys.exit(main(settings()))
