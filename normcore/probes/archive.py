"""Readings as one compressed file of arrays per probe, from which their figure can be drawn again."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from math import isnan, nan
from typing import Any
from zipfile import BadZipFile

import numpy as np

from normcore.records import Reading


def pack(readings: Sequence[Reading]) -> bytes:
    """The readings of one probe as a compressed npz, to be read by numpy alone: a row per reading.

    `step`, then each scalar (NaN where a reading does not have it) and each array with its values in a row; `kind`
    names the probe, `layers` the layers, `scalars` which columns are scalars, and `facts` holds names and values in two
    columns. Names stand in alphabetical order, so that equal readings are equal files: those of a training that was
    resumed come from its snapshot in another order. Nothing in it is pickled.

    Example:
        >>> readings = [Reading("landscape", 50, {"loss_min": 0.5}, {"loss": (0.5, 0.75)}, facts={"bn_mode": "batch"})]
        >>> sorted(np.load(BytesIO(pack(readings))))
        ['facts', 'kind', 'layers', 'loss', 'loss_min', 'scalars', 'step']
        >>> unpack(pack(readings)) == readings
        True
    """
    first = readings[0]
    names, arrays = sorted({name for reading in readings for name in reading.scalars}), sorted(first.arrays)
    columns: dict[str, Any] = {
        "step": np.asarray([reading.step for reading in readings]),
        **{name: np.asarray([reading.scalars.get(name, nan) for reading in readings]) for name in names},
        **{name: np.asarray([reading.arrays[name] for reading in readings], dtype=float) for name in arrays},
        "kind": np.asarray(first.probe),
        "layers": np.asarray(first.layers, dtype=str),
        "scalars": np.asarray(names, dtype=str),
        "facts": np.asarray(sorted(first.facts.items()), dtype=str).reshape(-1, 2),
    }
    content = BytesIO()
    np.savez_compressed(content, allow_pickle=False, **columns)
    return content.getvalue()


def unpack(content: bytes) -> list[Reading]:
    """What `pack` was given.

    Raises:
        ValueError: It is no such file.
    """
    try:
        with np.load(BytesIO(content), allow_pickle=False) as file:
            columns = {name: file[name] for name in file}
        kind, layers = str(columns.pop("kind")), tuple(map(str, columns.pop("layers")))
        names, steps = list(map(str, columns.pop("scalars"))), columns.pop("step").tolist()
        facts = {str(name): str(said) for name, said in columns.pop("facts")}
        scalars = {name: columns.pop(name).tolist() for name in names}
    except (EOFError, BadZipFile, KeyError, OSError, ValueError) as error:
        raise ValueError(f"readings must be an npz that a training wrote, got something else: {error}") from error
    return [
        Reading(
            kind,
            step,
            {name: column[row] for name, column in scalars.items() if not isnan(column[row])},
            {name: tuple(values[row].tolist()) for name, values in columns.items()},
            layers,
            facts,
        )
        for row, step in enumerate(steps)
    ]
