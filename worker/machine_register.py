"""The register of the machines that may join: a file with a line for each, its public key and its name."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from worker.machine_key import NAME


class KnownMachine(ValueError):
    """There is a machine of this name already."""


class UnknownMachine(LookupError):
    """There is no machine of this name."""


class MachineRegister:
    """The machines of a laboratory, in a folder that only its owner can read.

    Written by `worker.machines`, also while the gate reads it: whoever reads finds all of the old or all of the new.

    Example:
        >>> import tempfile
        >>> register = MachineRegister(Path(tempfile.mkdtemp()))
        >>> register.add("gpu-box", "ssh-ed25519 AAAA")
        >>> dict(register.names())
        {'ssh-ed25519 AAAA': 'gpu-box'}
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / "machines"

    def names(self) -> Mapping[str, str]:
        """The machines' names by their public keys."""
        try:
            lines = self._file.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return {}
        return {key: name for key, _, name in (line.rpartition(" ") for line in lines)}

    def add(self, name: str, public_key: str) -> None:
        """Let a machine in.

        Raises:
            KnownMachine: one of this name is in already, whose key shall not be replaced unasked.
            ValueError: nothing can be called so.
        """
        if re.fullmatch(NAME, name) is None:
            raise ValueError(
                f"a machine's name must be 1 to 63 letters, digits, dots, dashes or underscores, got {name!r}"
            )
        with self._changed() as machines:
            if name in machines.values():
                raise KnownMachine(
                    f"a machine's name must be new, got {name!r}, which is in the register; "
                    "remove it first, and its key is worth nothing any more"
                )
            machines[public_key] = name

    def remove(self, name: str) -> None:
        """Let a machine in no more.

        Raises:
            UnknownMachine: none is called so.
        """
        with self._changed() as machines:
            keys = [key for key, known in machines.items() if known == name]
            if not keys:
                known = ", ".join(sorted(machines.values())) or "none"
                raise UnknownMachine(f"a machine must be in the register to be removed, got {name!r}; known: {known}")
            for key in keys:
                del machines[key]

    @contextmanager
    def _changed(self) -> Iterator[dict[str, str]]:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self._folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            machines = dict(self.names())
            yield machines
            fresh = self._file.with_suffix(".new")
            fresh.unlink(missing_ok=True)
            fresh.touch(mode=0o600)
            with fresh.open("w", encoding="utf-8") as file:
                file.writelines(f"{key} {name}\n" for key, name in machines.items())
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self._file)
