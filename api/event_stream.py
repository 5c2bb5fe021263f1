"""Reading a stream of server-sent events (WHATWG HTML, section 9.2) line by line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StreamedEvent:
    """One event: its type, its data as it was sent, and the id to resume after, where it has one."""

    type: str
    data: str
    id: str | None


def read_events(lines: Iterable[str]) -> Iterator[StreamedEvent]:
    """The events of a stream's lines; comments, such as the pings that keep a connection alive, are skipped.

    An event that the end of the stream cuts off is dropped, as the standard says.

    Example:
        >>> lines = [": ping", "", "id: 3", "event: claimed", 'data: {"attempt": 1}', "", "data: cut o"]
        >>> list(read_events(lines))
        [StreamedEvent(type='claimed', data='{"attempt": 1}', id='3')]
    """
    kind, identifier = "message", None
    data: list[str] = []
    for line in lines:
        if not line:
            if data:
                yield StreamedEvent(kind, "\n".join(data), identifier)
            kind, identifier, data = "message", None, []
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match field:
            case "event":
                kind = value
            case "data":
                data.append(value)
            case "id":
                identifier = value
