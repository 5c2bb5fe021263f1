"""Where a URL leads: its host and port, and the same URL leading elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit, urlunsplit

PORTS = {"postgresql": 5432, "redis": 6379, "http": 80}
"""What can be reached through a tunnel, which knows hosts and ports only, and where it listens unless a URL tells."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A host and a TCP port.

    Example:
        >>> Endpoint.of("postgresql+psycopg://normcore:secret@postgres/normcore")
        Endpoint(host='postgres', port=5432)
        >>> Endpoint("127.0.0.1", 40001).instead_in("redis://:secret@redis:6379/0")
        'redis://:secret@127.0.0.1:40001/0'
        >>> Endpoint.typed("[2001:db8::1]:8022", port=22)
        Endpoint(host='2001:db8::1', port=8022)
    """

    host: str
    port: int

    @classmethod
    def of(cls, url: str) -> Self:
        """Where a URL leads.

        Raises:
            ValueError: not by host and port, such as the URL of a file.
        """
        parts = urlsplit(url)
        usual = PORTS.get(parts.scheme.partition("+")[0])
        # Nothing more of the URL is told, for there may be a password in it.
        if usual is None or not parts.hostname:
            raise ValueError(
                f"another machine reaches a laboratory's services by host and port, in URLs of {', '.join(PORTS)}, "
                f"got one of {parts.scheme!r}; start the laboratory with docker compose, or give its services ports"
            )
        return cls(parts.hostname, parts.port or usual)

    @classmethod
    def typed(cls, text: str, *, port: int) -> Self:
        """What a person wrote: `host:port`, or a host alone, at the port that is usual there.

        Raises:
            ValueError: it is neither.
        """
        try:
            parts = urlsplit(f"//{text.strip()}")
            if parts.hostname and parts.netloc == text.strip() and "@" not in text:
                return cls(parts.hostname, parts.port or port)
        except ValueError:
            pass
        raise ValueError(f"an address must be host:port, got {text!r}")

    def instead_in(self, url: str) -> str:
        """The URL, leading here."""
        parts = urlsplit(url)
        login, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{login}{at}{self}"))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
