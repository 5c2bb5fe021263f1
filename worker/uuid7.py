"""UUIDs of version 7 (RFC 9562, section 5.7): they sort by the millisecond they were made in."""

from __future__ import annotations

import secrets
import time
import uuid


def uuid7() -> str:
    """A new UUID version 7 as text: 48 bits of milliseconds since the epoch, then 74 random bits.

    Example:
        >>> uuid.UUID(uuid7()).version
        7
    """
    milliseconds = time.time_ns() // 1_000_000
    random = secrets.randbits(74)
    value = (
        (milliseconds & (1 << 48) - 1) << 80 | 0x7 << 76 | (random >> 62) << 64 | 0b10 << 62 | random & (1 << 62) - 1
    )
    return str(uuid.UUID(int=value))
