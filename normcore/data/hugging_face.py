"""Image datasets in the layout of the Hugging Face hub: parquet files in the data folder, or the hub's own."""

from __future__ import annotations

import hashlib
import io
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normcore.data.arrays import Arrays, cached
from normcore.data.folders import DataFolders, DatasetNotFound
from normcore.refusal import Refusal

HUB_TIMEOUT_S = 2.0
"""How long the hub may take to answer before it counts as out of reach."""


@dataclass(frozen=True, slots=True)
class HuggingFaceImages:
    """A dataset of images with a training and a test set, read from `<data_dir>/<hub_id>` or else from the hub.

    Decoding is done once, and the arrays are kept in the cache folder.
    """

    kind: str
    """Of the spec; names the folder in the cache."""
    title: str
    """What people call it."""
    hub_id: str
    """Owner and name on the hub, and the folder below the data folder."""
    image: str
    """The column of images."""
    labels: tuple[str, ...]
    """The columns of labels; the arrays' labels are `(N,)` where there is one, else `(N, len(labels))`."""
    shape: tuple[int, int, int]
    """Channels (3 for colour, 1 for grey), height, width."""
    num_train: int
    num_test: int

    def find(self, folders: DataFolders) -> None:
        """Raise `DatasetNotFound` where the images cannot be had.

        Reads no image, and takes under three seconds also where there is no network.
        """
        if self._kept(folders).is_dir():
            return
        if missing := [package for package in ("datasets", "PIL") if find_spec(package) is None]:
            raise DatasetNotFound(
                f"{self.kind} is read with the package {missing[0]}, which is not installed; "
                f"install it: pip install 'normcore[data]'"
            )
        if self._files(folders) or (folders.hub and _hub_answers(self.hub_id)):
            return
        hub = "the hub cannot be reached" if folders.hub else "the hub is switched off"
        raise DatasetNotFound(
            f"{self.kind} needs parquet files in {self._folder(folders).absolute()}, found none, and {hub}; "
            f"put {self.hub_id} there or set NORMCORE_DATA_DIR"
        )

    def arrays(self, folders: DataFolders) -> Arrays:
        """All images and labels.

        Raises:
            DatasetNotFound: Like `find`.
            Refusal: There are more or fewer images than the dataset has (code `dataset-incomplete`).
        """
        self.find(folders)
        return cached(self._kept(folders), lambda: self._decode(folders))

    def _folder(self, folders: DataFolders) -> Path:
        return folders.data_dir / self.hub_id

    def _files(self, folders: DataFolders) -> list[Path]:
        return sorted(self._folder(folders).rglob("*.parquet"))

    def _kept(self, folders: DataFolders) -> Path:
        """The folder of the decoded arrays; another one as soon as a source file is another one."""
        stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in self._files(folders)]
        digest = hashlib.sha256(repr(stats).encode()).hexdigest()[:16] if stats else "hub"
        return folders.cache_dir / f"{self.kind}-{digest}"

    def _decode(self, folders: DataFolders) -> Arrays:
        import datasets
        from huggingface_hub import snapshot_download

        folders.cache_dir.mkdir(parents=True, exist_ok=True)
        # The libraries' own copies are of no use once the images are decoded, and must not land in the home directory.
        with tempfile.TemporaryDirectory(prefix=".draft-", dir=folders.cache_dir) as draft:
            source, origin = str(self._folder(folders)), str(self._folder(folders))
            if not self._files(folders):
                source, origin = f"{draft}/hub", "the hub"
                snapshot_download(self.hub_id, repo_type="dataset", allow_patterns="*.parquet", local_dir=source)
            with _no_progress_bars():
                splits = datasets.load_dataset(source, cache_dir=draft)
            train_images, train_labels = self._stack(splits["train"])
            test_images, test_labels = self._stack(splits["test"])
        for name, got, wanted in (
            ("training", len(train_labels), self.num_train),
            ("test", len(test_labels), self.num_test),
        ):
            if got != wanted:
                raise Refusal(
                    "dataset-incomplete",
                    f"{self.title} has {wanted} {name} images, got {got} from {origin}; fetch its parquet files again",
                )
        return Arrays(train_images, train_labels, test_images, test_labels)

    def _stack(self, split: Any) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        import datasets
        from PIL import Image

        columns = [np.asarray(split[name], dtype=np.int64) for name in self.labels]
        labels = columns[0] if len(columns) == 1 else np.stack(columns, axis=1)
        images = np.empty((len(labels), *self.shape), dtype=np.uint8)
        mode = "RGB" if self.shape[0] == 3 else "L"
        coded = split.cast_column(self.image, datasets.Image(decode=False)).iter(batch_size=1000)
        for index, cell in enumerate(cell for rows in coded for cell in rows[self.image]):
            with Image.open(io.BytesIO(cell["bytes"])) as image:
                pixels = np.asarray(image.convert(mode))
            images[index] = pixels.reshape(*pixels.shape[:2], -1).transpose(2, 0, 1)
        return images, labels


def _hub_answers(hub_id: str) -> bool:
    from huggingface_hub import HfApi

    answers: list[Any] = []

    def ask() -> None:
        try:
            answers.append(HfApi().dataset_info(hub_id, timeout=HUB_TIMEOUT_S))
        except Exception:  # noqa: BLE001 (whatever is wrong with the network, the hub does not answer)
            return

    # Looking up a host's name has no timeout of its own, so the question is left behind in its thread.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_TIMEOUT_S)
    return bool(answers)


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
