"""What the probes of a training have seen, since its beginning."""

from __future__ import annotations

from normcore.probes.archive import pack
from normcore.records import Reading, Snapshot


class Readings:
    """The readings of a training from its beginning, also when it goes on from a snapshot.

    Example:
        >>> from normcore.probes.archive import unpack
        >>> readings = Readings(None)
        >>> readings.add(Reading("landscape", 50, {"loss_min": 0.5}, {"loss": (0.5, 0.75)}))
        >>> [reading.step for reading in unpack(readings.npz("landscape"))]
        [50]
    """

    def __init__(self, snapshot: Snapshot | None) -> None:
        self._all: list[Reading] = []
        if snapshot is not None:
            # Here, and not above: torch takes a second, and a supervisor has no need of it.
            from normcore.snapshot import readings_of

            self._all += readings_of(snapshot)

    def add(self, reading: Reading) -> None:
        """One more."""
        self._all.append(reading)

    def npz(self, probe: str) -> bytes:
        """Those of a probe, as `normcore.probes.archive.pack` writes them."""
        return pack([reading for reading in self._all if reading.probe == probe])
