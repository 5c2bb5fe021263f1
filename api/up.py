"""`normcore up`: the whole laboratory on one machine, and `laboratory`, which the demo starts it with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from api.embedded.board import Board
from api.embedded.broker import find_broker
from api.embedded.lineup import api_url, environment, lineup, listeners, mlflow_url
from api.embedded.lock import StateFolderTaken, state_folder
from api.embedded.ports import PortTaken, check
from api.embedded.signals import Stop, StopSignals
from api.embedded.standing import ServiceFailed
from api.embedded.supervisor import Supervisor, supervise
from worker.settings import Settings

REFUSALS = (StateFolderTaken, PortTaken, ServiceFailed, OSError)
"""What can be wrong with the machine; each says in its message what to do."""


def up(settings: Settings, console: Console) -> int:
    """Start the laboratory and look after it until a signal comes.

    Returns:
        The exit status: 0 when it was asked to stop, 1 when it could not be started.
    """
    try:
        with laboratory(settings, console) as supervisor:
            console.print("Stop it with Ctrl-C.", highlight=False)
            supervisor.attend()
    except Stop as stop:
        console.print(f"The laboratory has stopped ({stop}); `normcore up` goes on where it was.", highlight=False)
    except REFUSALS as error:
        console.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    return 0


@contextmanager
def laboratory(settings: Settings, console: Console) -> Iterator[Supervisor]:
    """A laboratory that is up and has said so; it is stopped when the block is left.

    Raises:
        StateFolderTaken: another one has the state folder.
        PortTaken: somebody has a port of ours.
        OSError: the state folder cannot be written, or there is no broker to start.
        ServiceFailed: a service did not start.
        Stop: a signal asked to stop, before or in the block.
    """
    with state_folder(settings.state_dir) as lock, StopSignals() as signals:
        check(listeners(settings))
        broker = None if settings.redis_url is not None else find_broker(settings.state_dir)
        board = Board(console)
        with supervise(
            lineup(settings, broker),
            environment=environment(settings, broker, os.environ),
            log_dir=settings.state_dir.absolute() / "log",
            lock=lock,
            signals=signals,
            on_change=board.on_change,
            on_tick=board.on_tick,
        ) as supervisor:
            with board.coming_up(supervisor.standings):
                supervisor.wait_until_ready()
            _say_where(settings, console)
            yield supervisor
        if broker is not None:
            broker.remove_socket()


def _say_where(settings: Settings, console: Console) -> None:
    api = api_url(settings)
    where = "" if api == Settings.model_fields["api_url"].default else f" --api {api}"
    lines = (
        f"Normcore is up: process {os.getpid()}, state in {settings.state_dir.absolute()}",
        f"  API     {api}  (its documentation: {api}/docs)",
        f"  MLflow  {mlflow_url(settings)}/#/experiments?workflowType=machine_learning",
        f"  logs    {settings.state_dir.absolute() / 'log'}",
        f"Order a job: normcore submit model.kind=vgg data.kind=digits --watch{where}",
    )
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
