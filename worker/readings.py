"""What the probes of a training have seen, since its beginning."""

from __future__ import annotations

from collections.abc import Iterable

from normcore.probes.archive import pack
from normcore.records import Reading


class Readings:
    """The readings of a training from its beginning, also when it goes on from a snapshot.

    Args:
        before: Those of the snapshot.

    Example:
        >>> from normcore.probes.archive import unpack
        >>> readings = Readings([])
        >>> readings.add(Reading("landscape", 50, {"loss_min": 0.5}, {"loss": (0.5, 0.75)}))
        >>> [reading.step for reading in unpack(readings.npz("landscape"))]
        [50]
    """

    def __init__(self, before: Iterable[Reading]) -> None:
        self._all = list(before)

    def add(self, reading: Reading) -> None:
        """One more."""
        self._all.append(reading)

    @property
    def probes(self) -> set[str]:
        """The probes that have any."""
        return {reading.probe for reading in self._all}

    def npz(self, probe: str) -> bytes:
        """Those of a probe, as `normcore.probes.archive.pack` writes them."""
        return pack([reading for reading in self._all if reading.probe == probe])
