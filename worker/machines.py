"""The machines that may join, `python -m worker.machines add | list | remove`, beside a running gate or without one."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from worker.endpoint import Endpoint
from worker.gate import folder_of, host_key, new_key_pair, public_text
from worker.machine_key import MachineKey
from worker.machine_register import MachineRegister
from worker.settings import Settings, settings

REFUSED = 2


def main(words: Sequence[str], config: Settings) -> int:
    """Do what the words say; the exit status, 2 where it cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m worker.machines", description="The machines that may join")
    commands = parser.add_subparsers(dest="command", required=True)
    for command, what in (("add", "let a machine in, and print its key"), ("remove", "cut a machine off")):
        commands.add_parser(command, help=what).add_argument("name")
    commands.add_parser("list", help="print the machines' names")
    asked = parser.parse_args(words)
    register = MachineRegister(folder_of(config))
    try:
        match asked.command:
            case "add":
                print(add(asked.name, register, config))
            case "remove":
                register.remove(asked.name)
            case "list":
                for name in sorted(register.names().values()):
                    print(name)
    except (ValueError, LookupError) as error:
        print(error, file=sys.stderr)
        return REFUSED
    return 0


def add(name: str, register: MachineRegister, config: Settings) -> MachineKey:
    """Enter a machine; its key, which is kept nowhere here.

    Raises:
        ValueError: it is there already, or another machine cannot reach this laboratory's services.
    """
    for url in (config.database, config.broker, config.mlflow_url):
        Endpoint.of(url)
    private, public = new_key_pair()
    register.add(name, public)
    return MachineKey(
        name=name,
        private_key=private,
        host_key=public_text(host_key(folder_of(config))),
        database_url=config.database,
        redis_url=config.broker,
        mlflow_url=config.mlflow_url,
        mlflow_public_url=config.mlflow_links,
        mlflow_experiment=config.mlflow_experiment,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], settings()))
