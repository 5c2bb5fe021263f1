"""CIFAR-10, in the layout of the Hugging Face dataset `uoft-cs/cifar10`."""

from __future__ import annotations

import hashlib
import io
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normcore.data.arrays import Arrays, cached
from normcore.data.folders import DataFolders, DatasetNotFound
from normcore.menu.datasets import Cifar10Spec
from normcore.refusal import Refusal

HUB_ID = "uoft-cs/cifar10"
HUB_TIMEOUT_S = 2.0
"""How long the hub may take to answer before it counts as out of reach."""


class Cifar10:
    """60,000 colour images of 32x32 pixels in ten classes (Krizhevsky 2009), 10,000 of them the test set.

    Read from parquet files below `<data_dir>/uoft-cs/cifar10`, or from the hub where that folder is empty. Decoding
    takes some ten seconds, is done once, and is kept in the cache folder as 184 MB of arrays.

    Args:
        crop_padding: Pixels around an image for random crops.
        flip: Mirror each training image left to right with probability one half.
    """

    def __init__(self, *, crop_padding: int = 0, flip: bool = False) -> None:
        self.crop_padding, self.flip = crop_padding, flip

    def find(self, folders: DataFolders) -> None:
        """Raise `DatasetNotFound` where the images cannot be had.

        Reads no image, and takes under three seconds also where there is no network.
        """
        files, kept = _files(folders), _kept(folders)
        if kept.is_dir():
            return
        if missing := [package for package in ("datasets", "PIL") if find_spec(package) is None]:
            raise DatasetNotFound(
                f"cifar10 is read with the package {missing[0]}, which is not installed; "
                f"install it: pip install 'normcore[data]'"
            )
        if files or (folders.hub and _hub_answers()):
            return
        hub = "the hub cannot be reached" if folders.hub else "the hub is switched off"
        raise DatasetNotFound(
            f"cifar10 needs parquet files in {_folder(folders).absolute()}, found none, and {hub}; "
            f"put {HUB_ID} there or set NORMCORE_DATA_DIR"
        )

    def arrays(self, folders: DataFolders) -> Arrays:
        """All images and labels.

        Raises:
            DatasetNotFound: Like `find`.
            Refusal: There are more or fewer images than CIFAR-10 has (code `dataset-incomplete`).
        """
        self.find(folders)
        return cached(_kept(folders), partial(_decode, folders))


def _folder(folders: DataFolders) -> Path:
    return folders.data_dir / HUB_ID


def _files(folders: DataFolders) -> list[Path]:
    return sorted(_folder(folders).rglob("*.parquet"))


def _kept(folders: DataFolders) -> Path:
    """The folder of the decoded arrays; another one as soon as a source file is another one."""
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in _files(folders)]
    digest = hashlib.sha256(repr(stats).encode()).hexdigest()[:16] if stats else "hub"
    return folders.cache_dir / f"cifar10-{digest}"


def _hub_answers() -> bool:
    from huggingface_hub import HfApi

    answers: list[Any] = []

    def ask() -> None:
        try:
            answers.append(HfApi().dataset_info(HUB_ID, timeout=HUB_TIMEOUT_S))
        except Exception:  # noqa: BLE001 (whatever is wrong with the network, the hub does not answer)
            return

    # Looking up a host's name has no timeout of its own, so the question is left behind in its thread.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_TIMEOUT_S)
    return bool(answers)


def _decode(folders: DataFolders) -> Arrays:
    import datasets
    from huggingface_hub import snapshot_download

    folders.cache_dir.mkdir(parents=True, exist_ok=True)
    # The libraries' own copies are of no use once the images are decoded, and must not land in the home directory.
    with tempfile.TemporaryDirectory(prefix=".draft-", dir=folders.cache_dir) as draft:
        source, origin = str(_folder(folders)), str(_folder(folders))
        if not _files(folders):
            source, origin = f"{draft}/hub", "the hub"
            snapshot_download(HUB_ID, repo_type="dataset", allow_patterns="*.parquet", local_dir=source)
        with _no_progress_bars():
            splits = datasets.load_dataset(source, cache_dir=draft)
        train_images, train_labels = _stack(splits["train"])
        test_images, test_labels = _stack(splits["test"])
    for name, got, wanted in (
        ("training", len(train_labels), Cifar10Spec.num_train),
        ("test", len(test_labels), Cifar10Spec.num_test),
    ):
        if got != wanted:
            raise Refusal(
                "dataset-incomplete",
                f"CIFAR-10 has {wanted} {name} images, got {got} from {origin}; fetch its parquet files again",
            )
    return Arrays(train_images, train_labels, test_images, test_labels)


def _stack(split: Any) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    import datasets
    from PIL import Image

    labels = np.asarray(split["label"], dtype=np.int64)
    images = np.empty((len(labels), *Cifar10Spec.shape), dtype=np.uint8)
    coded = split.cast_column("img", datasets.Image(decode=False)).iter(batch_size=1000)
    for index, cell in enumerate(cell for rows in coded for cell in rows["img"]):
        with Image.open(io.BytesIO(cell["bytes"])) as image:
            images[index] = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    return images, labels


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
