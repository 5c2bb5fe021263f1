"""One's own images, in parquet files."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from normcore.data.folders import DataFolders
from normcore.data.held_out import split
from normcore.data.image_set import ImageSet, ImageSets
from normcore.data.own_images import OwnImages
from normcore.data.parquet_files import parquet_files

ROWS = 256


class Parquet(OwnImages):
    """A column of encoded images and one of labels, in files of a training and a test set or of one to be divided.

    An image in the middle of a parquet file cannot be read on its own, so the encoded images are laid out once more in
    the cache, as they are, in a file that is mapped into memory.

    Args:
        image: The column of encoded images.
        label: The column of labels.
        knobs: Those of `OwnImages`.
    """

    kind = "parquet"

    def __init__(self, *, image: str = "image", label: str = "label", **knobs: Any) -> None:
        super().__init__(**knobs)
        self.image_column, self.label_column = image, label

    def sets(self, folders: DataFolders) -> ImageSets:
        """Training and test set, undecoded; raises like `normcore.data.parquet_files.parquet_files`."""
        self.find(folders)
        found = parquet_files(folders, self.path, self.image_column, self.label_column)
        laid_out = self._laid_out(folders, [*found.train, *found.test])
        count = len(found.train_labels)
        labels = np.concatenate([found.train_labels, found.test_labels])
        if found.test:
            train, test = np.arange(count), np.arange(count, len(labels))
        else:
            train, test = split(count, self.test_share, self.split_seed)
        encoded = _mapped(laid_out)

        def images(rows: Any) -> ImageSet:
            return ImageSet(
                labels[rows],
                encoded=lambda number: encoded(int(rows[number])),
                name=lambda number: f"row {int(rows[number])} of {self.path}",
                size=self.size,
                channels=self.channels,
            )

        return ImageSets(images(train), images(test), self._kept(folders, [*found.train, *found.test]))

    def _laid_out(self, folders: DataFolders, files: list[Path]) -> Path:
        stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        digest = hashlib.sha256(repr((self.image_column, stats)).encode()).hexdigest()[:16]
        file = folders.cache_dir / f"parquet-images-{digest}" / "images.arrow"
        if not file.parent.is_dir():
            folders.cache_dir.mkdir(parents=True, exist_ok=True)
            draft = Path(tempfile.mkdtemp(prefix=".draft-", dir=folders.cache_dir))
            try:
                _lay_out(files, self.image_column, draft / file.name)
                try:
                    draft.rename(file.parent)
                except OSError:
                    if not file.is_file():
                        raise
            finally:
                shutil.rmtree(draft, ignore_errors=True)
        return file


def _lay_out(files: list[Path], column: str, into: Path) -> None:
    """The column's bytes of all files, one after the other, in an Arrow file."""
    import pyarrow as pa
    import pyarrow.compute
    import pyarrow.parquet

    schema = pa.schema([("bytes", pa.large_binary())])
    with pa.OSFile(str(into), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for file in files:
            with pyarrow.parquet.ParquetFile(file) as opened:
                for batch in opened.iter_batches(ROWS, columns=[column]):
                    cells = batch.column(0)
                    if pa.types.is_struct(cells.type):
                        cells = pyarrow.compute.struct_field(cells, "bytes")
                    writer.write_batch(pa.record_batch([cells.cast(pa.large_binary())], schema=schema))


def _mapped(file: Path) -> Callable[[int], bytes]:
    """What reads the bytes of a row."""
    import pyarrow as pa

    chunks = pa.ipc.open_file(pa.memory_map(str(file))).read_all().column("bytes").chunks
    starts = np.cumsum([0, *(len(chunk) for chunk in chunks)])

    def read(row: int) -> bytes:
        chunk = int(np.searchsorted(starts, row, side="right")) - 1
        found: bytes = chunks[chunk][row - int(starts[chunk])].as_py()
        return found

    return read
