"""A dataset as four arrays, kept on disk so that decoding is done once."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FILES = ("train_images", "train_labels", "test_images", "test_labels")
"""The names of the arrays on disk, in the order of the fields of `Arrays`."""


@dataclass(frozen=True, slots=True)
class Arrays:
    """Inputs and labels of a training and a test set.

    Inputs are images `(N, C, H, W)` in uint8, tokens `(N, L)` in int64 with 0 for padding, or vectors `(N, D)` in
    float64.
    """

    train_inputs: NDArray[Any]
    train_labels: NDArray[Any]
    """Classes `(N,)` in int64, or targets `(N, K)` in float64."""
    test_inputs: NDArray[Any]
    test_labels: NDArray[Any]
    """Like those of the training set."""


@dataclass(frozen=True, slots=True)
class Samples:
    """Inputs and labels of one set, like those of `Arrays`."""

    inputs: NDArray[Any]
    labels: NDArray[Any]

    def __len__(self) -> int:
        return len(self.labels)


def cached(folder: Path, make: Callable[[], Arrays]) -> Arrays:
    """The arrays in `folder`, one `.npy` file each; made and put there where the folder does not exist.

    The folder appears whole, by renaming: a process that is killed leaves no half-written cache, and of two that race
    both get their arrays and one of them its folder.

    Args:
        folder: Of these arrays and no others; its parents are created.
        make: Called where the folder does not exist.
    """
    if folder.is_dir():
        return Arrays(*(np.load(folder / f"{name}.npy") for name in FILES))
    arrays = make()
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=folder.parent))
    try:
        for name, field in zip(FILES, fields(Arrays), strict=True):
            np.save(draft / f"{name}.npy", getattr(arrays, field.name))
        try:
            draft.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return arrays
