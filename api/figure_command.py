"""The figure of a probe, drawn again from the readings that a training has kept."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

from normcore.menu.probes import ProbeSpec
from normcore.probes.archive import unpack
from normcore.probes.sheet import THEMES
from normcore.records import Reading
from normcore.spec import kind_of

WHERE = "readings/<probe>.npz among the artifacts of an MLflow run"


class CannotDraw(Exception):
    """What was given makes no figure; the message says why, and what would."""


def redraw(files: Sequence[Path], out: Path | None, theme: Literal["light", "dark"], names: Sequence[str]) -> Path:
    """Draw the readings of trainings side by side, as PNG, and say where the figure is.

    A single file without a name gives the very figure that its training has made.

    Args:
        files: `readings/<probe>.npz` of MLflow runs, all of one kind of probe.
        out: Where the figure goes; beside the first file, with the ending `.png`, when not given.
        theme: Colours, for a light ground or a dark one.
        names: Of the trainings, one per file; when not given, what differs in the files' paths.

    Raises:
        CannotDraw: With a sentence.
    """
    if names and len(names) != len(files):
        raise CannotDraw(
            f"each file must have a name, got {len(files)} files and {len(names)} names; give --name again"
        )
    out = files[0].with_suffix(".png") if out is None else out
    if out.resolve() in {file.resolve() for file in files}:
        raise CannotDraw(f"the figure must not overwrite the readings it is drawn from, got --out {out}; name another")
    readings = [_readings(file) for file in files]
    called = list(names) or names_of(files)
    if twice := sorted({name for name in called if called.count(name) > 1}):
        raise CannotDraw(f"trainings must have different names, got {twice[0]!r} twice; name each with --name")
    kinds = [each[0].probe for each in readings]
    for kind, file in zip(kinds, files, strict=True):
        if kind != kinds[0]:
            raise CannotDraw(
                f"one figure is of one kind of probe, got {kinds[0]} in {files[0]} and {kind} in {file}; "
                f"draw them apart"
            )
    drawings = {kind_of(part): part.drawing for part in get_args(ProbeSpec)}
    if kinds[0] not in drawings:
        raise CannotDraw(
            f"the readings must be of a probe of the menu, got {kinds[0]!r} in {files[0]}; "
            f"on offer: {', '.join(drawings)}"
        )
    try:
        png = drawings[kinds[0]]()(dict(zip(called, readings, strict=True)), THEMES[theme])
    except ModuleNotFoundError as error:
        raise CannotDraw(
            "figures are drawn with matplotlib, which is not installed; pip install 'normcore[figures]'"
        ) from error
    except (LookupError, TypeError, ValueError) as error:
        raise CannotDraw(
            f"the readings must be those of the probe {kinds[0]} of this version, and lack {error}"
        ) from error
    try:
        out.write_bytes(png)
    except OSError as error:
        raise CannotDraw(f"the figure cannot be written to {out}: {error.strerror}; name another with --out") from error
    return out


def names_of(files: Sequence[Path]) -> list[str]:
    """What tells files apart: their stems, or the folders nearest to them that all differ; nothing for a single one.

    Example:
        >>> names_of([Path("batch/readings/landscape.npz"), Path("none/readings/landscape.npz")])
        ['batch', 'none']
        >>> names_of([Path("landscape.npz")])
        ['']
    """
    if len(files) == 1:
        return [""]
    parts = [[file.stem, *(folder.name for folder in file.absolute().parents)] for file in files]
    for level in zip(*parts, strict=False):
        if len(set(level)) == len(files):
            return list(level)
    return [str(file) for file in files]


def _readings(file: Path) -> list[Reading]:
    try:
        readings = unpack(file.read_bytes())
    except OSError as error:
        raise CannotDraw(f"{file} cannot be read: {error.strerror}") from error
    except (LookupError, TypeError, ValueError, zlib.error) as error:
        raise CannotDraw(
            f"{file} must hold the readings of a probe, as {WHERE}, got something else: {error}"
        ) from error
    if not readings:
        raise CannotDraw(f"{file} must hold a reading, got none; take that of another training")
    return readings
