"""A machine's key: one line that holds all it takes to work for a laboratory on another machine.

`normcore-machine-1.<base64url of JSON>`: the machine's private key, the laboratory's host key, by which the machine
knows that it talks to the right one, and where the laboratory's services are. Whoever has it can work as that machine,
and knows the passwords of the database and of the queue, to which only the gate opens a way.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
"""What a machine may be called: its workers are called so too, and a slash and their hosts' names follow."""

_MARK = "normcore-machine-"
_VERSION = 1


class BadKey(ValueError):
    """A text that is no machine's key, or one that this version cannot read."""


class MachineKey(BaseModel):
    """What `make machine` prints, taken apart.

    Example:
        >>> key = MachineKey(
        ...     name="gpu-box",
        ...     private_key="MC4",
        ...     host_key="ssh-ed25519 AAAA",
        ...     database_url="postgresql+psycopg://normcore:secret@postgres/normcore",
        ...     redis_url="redis://:secret@redis:6379/0",
        ...     mlflow_url="http://mlflow:5000",
        ...     mlflow_public_url="http://127.0.0.1:5000",
        ...     mlflow_experiment="normcore",
        ... )
        >>> str(key)[:40]
        'normcore-machine-1.eyJuYW1lIjoiZ3B1LWJve'
        >>> MachineKey.of(str(key)) == key
        True
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: str = Field(pattern=NAME)
    private_key: str = Field(repr=False)
    """Ed25519, PKCS#8, in base64."""
    host_key: str
    """The public key of the laboratory's gate, as OpenSSH writes it."""
    database_url: str = Field(repr=False)
    redis_url: str = Field(repr=False)
    mlflow_url: str
    mlflow_public_url: str
    mlflow_experiment: str

    @classmethod
    def of(cls, text: str) -> Self:
        """Read a key.

        Raises:
            BadKey: it is none, or not whole, or of another version.
        """
        found = re.fullmatch(rf"{_MARK}(\d+)\.(\S*)", text.strip())
        if found is None:
            raise BadKey(
                f"a machine's key must be the line that begins with {_MARK}{_VERSION}, got {len(text)} others; "
                "make one in the laboratory with: make machine NAME=..."
            )
        if (version := int(found[1])) != _VERSION:
            raise BadKey(
                f"a machine's key must be of version {_VERSION}, which this Normcore reads, got version {version}; "
                "bring this machine to the laboratory's version of Normcore"
            )
        try:
            padded = found[2] + "=" * (-len(found[2]) % 4)
            return cls.model_validate_json(base64.b64decode(padded, altchars=b"-_", validate=True))
        except (binascii.Error, ValidationError):
            raise BadKey(
                f"a machine's key must be whole, got {len(found[2])} characters that make no sense after its version; "
                "copy the line again, or make another one in the laboratory with: make machine NAME=..."
            ) from None

    def __str__(self) -> str:
        payload = base64.urlsafe_b64encode(self.model_dump_json().encode()).decode().rstrip("=")
        return f"{_MARK}{_VERSION}.{payload}"
