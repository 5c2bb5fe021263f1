"""What the probes of a training have seen, as one compressed file of arrays per probe."""

from __future__ import annotations

import io
import math
from collections import defaultdict
from typing import Any

import numpy as np

from normcore.records import Reading, Snapshot

_PREFIX = "readings."


class Readings:
    """The readings of a training from its beginning, also when it goes on from a snapshot.

    Example:
        >>> readings = Readings(None)
        >>> readings.add(Reading("landscape", 50, {"loss_min": 0.5}, {"loss": (0.5, 0.75)}))
        >>> readings.add(Reading("landscape", 100, {}, {"loss": (0.25, 0.5)}))
        >>> arrays = np.load(io.BytesIO(readings.npz("landscape")))
        >>> arrays["step"].tolist(), arrays["loss_min"].tolist(), arrays["loss"].shape
        ([50, 100], [0.5, nan], (2, 2))
    """

    def __init__(self, snapshot: Snapshot | None) -> None:
        self._columns: defaultdict[str, dict[str, list[object]]] = defaultdict(dict)
        for path, tensor in () if snapshot is None else snapshot.tensors.items():
            if path.startswith(_PREFIX):
                probe, *_, name = path.removeprefix(_PREFIX).split(".")
                self._columns[probe][name] = tensor.tolist()

    def add(self, reading: Reading) -> None:
        """One more row. A scalar that it does not have is NaN there, and so is one that earlier rows did not have."""
        columns = self._columns[reading.probe]
        rows = len(columns.setdefault("step", []))
        values: dict[str, object] = {"step": reading.step, **reading.scalars, **reading.arrays}
        for name, value in values.items():
            columns.setdefault(name, [math.nan] * rows).append(value)
        for column in columns.values():
            column.extend([math.nan] * (rows + 1 - len(column)))

    def npz(self, probe: str) -> bytes:
        """The columns of a probe, a row per reading: `step`, each scalar, and each array with its points in a row."""
        content = io.BytesIO()
        columns: dict[str, Any] = {name: np.asarray(column) for name, column in self._columns[probe].items()}
        np.savez_compressed(content, allow_pickle=False, **columns)
        return content.getvalue()
