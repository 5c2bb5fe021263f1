"""A dataset as four arrays, kept on disk so that decoding is done once."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Arrays:
    """Images and labels of a training and a test set."""

    train_images: NDArray[np.uint8]
    """`(N, C, H, W)`, 0 to 255."""
    train_labels: NDArray[np.int64]
    """`(N,)`"""
    test_images: NDArray[np.uint8]
    """`(M, C, H, W)`, 0 to 255."""
    test_labels: NDArray[np.int64]
    """`(M,)`"""


def cached(folder: Path, make: Callable[[], Arrays]) -> Arrays:
    """The arrays in `folder`, one `.npy` file each; made and put there where the folder does not exist.

    The folder appears whole, by renaming: a process that is killed leaves no half-written cache, and of two that race
    both get their arrays and one of them its folder.

    Args:
        folder: Of these arrays and no others; its parents are created.
        make: Called where the folder does not exist.
    """
    if folder.is_dir():
        return Arrays(*(np.load(folder / f"{field.name}.npy") for field in fields(Arrays)))
    arrays = make()
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=folder.parent))
    try:
        for field in fields(Arrays):
            np.save(draft / f"{field.name}.npy", getattr(arrays, field.name))
        try:
            draft.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return arrays
