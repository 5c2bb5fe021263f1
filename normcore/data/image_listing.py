"""Which images lie in a folder of folders."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from normcore.data.folders import DataFolders
from normcore.refusal import Refusal

SUFFIXES = (".jpeg", ".jpg", ".png")


@dataclass(frozen=True, slots=True)
class Listing:
    """Images by split and class, sorted by name."""

    root: Path
    classes: tuple[str, ...]
    train: tuple[tuple[str, int], ...]
    """Each image by its path below the root, and the number of its class."""
    test: tuple[tuple[str, int], ...] | None
    """None where there is no folder of that name."""
    fingerprint: str
    """Of names and sizes."""


def listing(folders: DataFolders, path: str) -> Listing:
    """The images of `path`; opens none, and takes some seconds for a million.

    Raises:
        Refusal: The path or a link in it leads out of the data folder or nowhere, or what lies there is no
            `train/<class>/<image>` of two classes or more, or the test set has a class of its own.
    """
    root = folders.inside(path)
    train = _classes(folders, root, path, "train")
    if train is None or len(train) < 2:
        found = "no folder train" if train is None else f"{len(train)} with a .png or .jpg"
        raise Refusal(
            "dataset-layout",
            f"an imagefolder must have train/<class>/<image> for at least two classes, found {found} in {path!r}; "
            f"sort the images into folders named after their classes",
        )
    classes = tuple(sorted(train))
    test = _classes(folders, root, path, "test")
    if test is not None and (not test or not test.keys() <= train.keys()):
        raise Refusal(
            "dataset-layout",
            f"the test set must be images of the training set's classes, found "
            f"{', '.join(sorted(test.keys() - train.keys())) or 'none'} in the test folder of {path!r}; sort its "
            f"images likewise, or take it away to have a share held out",
        )
    digest = hashlib.sha256()
    for split in (train, test or {}):
        for name in sorted(split):
            digest.update(repr((name, split[name])).encode())
    samples = [
        None
        if split is None
        else tuple(
            (f"{folder}/{name}/{file}", number)
            for number, name in enumerate(classes)
            for file, _ in split.get(name, ())
        )
        for folder, split in (("train", train), ("test", test))
    ]
    assert samples[0] is not None
    return Listing(root, classes, samples[0], samples[1], digest.hexdigest()[:16])


def _classes(folders: DataFolders, root: Path, path: str, split: str) -> dict[str, list[tuple[str, int]]] | None:
    """Name and size of every image by class, or none where the split has no folder; classes without images are none."""
    home = root / split
    if not home.is_dir():
        return None
    folders.check_inside(home.resolve(), f"{path}/{split}")
    found = {}
    for folder in _entries(folders, home, f"{path}/{split}"):
        if folder.is_dir():
            images = [
                (entry.name, entry.stat().st_size)
                for entry in _entries(folders, Path(folder.path), f"{path}/{split}/{folder.name}")
                if entry.name.lower().endswith(SUFFIXES) and entry.is_file()
            ]
            if images:
                found[folder.name] = sorted(images)
    return found


def _entries(folders: DataFolders, home: Path, path: str) -> list[os.DirEntry[str]]:
    with os.scandir(home) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    for entry in visible:
        if entry.is_symlink():
            folders.check_inside(Path(entry.path).resolve(), f"{path}/{entry.name}")
    return visible
