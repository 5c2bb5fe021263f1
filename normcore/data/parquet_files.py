"""Which images lie in parquet files."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normcore.data.folders import DataFolders, DatasetNotFound
from normcore.refusal import Refusal

FOOTER_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class ParquetFiles:
    """Parquet files by split, with the classes of their rows."""

    train: tuple[Path, ...]
    test: tuple[Path, ...]
    """Empty where no file is named after a split."""
    num_classes: int
    train_labels: NDArray[np.int64]
    test_labels: NDArray[np.int64]
    fingerprint: str
    """Of names, sizes and footers, which hold the extremes of columns."""


def parquet_files(folders: DataFolders, path: str, image: str, label: str) -> ParquetFiles:
    """The files of `path` and their labels; reads the column of labels and no image.

    Raises:
        DatasetNotFound: pyarrow is not installed.
        Refusal: The path or a link in it leads out of the data folder or nowhere, there are no training files, or a
            column is missing or no column of images or labels.
    """
    if find_spec("pyarrow") is None:
        raise DatasetNotFound(
            "parquet is read with the package pyarrow, which is not installed; install it: pip install 'normcore[data]'"
        )
    root = folders.inside(path)
    files = [root] if root.is_file() else sorted(root.rglob("*.parquet"))
    for file in files:
        folders.check_inside(file.resolve(), f"{path}/{file.name}")
    train, test = ([file for file in files if _split(root, file) == split] for split in ("train", "test"))
    if not train and not test:
        train = files
    if not train:
        raise Refusal(
            "dataset-layout",
            f"path must lead to a parquet file, or to a folder of files train*.parquet, found {len(files)} parquet "
            f"files and none to train on in {path!r}; name them after their split",
        )
    for file in (*train, *test):
        _check_columns(file, image, label)
    train_labels, test_labels, num_classes = _classes(label, _column(train, label), _column(test, label))
    digest = hashlib.sha256()
    for file in (*train, *test):
        with file.open("rb") as opened:
            size = opened.seek(0, 2)
            opened.seek(max(0, size - FOOTER_BYTES))
            digest.update(repr((file.name, size)).encode() + opened.read())
    return ParquetFiles(tuple(train), tuple(test), num_classes, train_labels, test_labels, digest.hexdigest()[:16])


def _split(root: Path, file: Path) -> str | None:
    """The split that a file or a folder above it is named after.

    Example:
        >>> _split(Path("a"), Path("a/test/0.parquet")), _split(Path("a"), Path("a/training.parquet"))
        ('test', None)
    """
    names = file.relative_to(root).parts or (file.name,)
    found = [match.group(1) for name in names if (match := re.match(r"(train|test)(?![a-zA-Z])", name))]
    return found[-1] if found else None


def _check_columns(file: Path, image: str, label: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet
    from pyarrow import types

    try:
        schema = pyarrow.parquet.read_schema(file)
    except (OSError, pa.ArrowException) as error:
        raise Refusal(
            "dataset-layout", f"{file.name} must be a parquet file, got what cannot be read as one ({error}); mend it"
        ) from error
    listed = ", ".join(schema.names)
    for name, code in ((image, "no-image-column"), (label, "no-label-column")):
        if name not in schema.names:
            raise Refusal(
                code, f"{file.name} must have a column {name!r}, got the columns {listed}; name the one that is meant"
            )
    kind = schema.field(image).type
    if types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (types.is_binary(kind) or types.is_large_binary(kind)):
        raise Refusal(
            "no-image-column",
            f"a column of images must hold encoded images as bytes, got {kind} in {image!r} of {file.name}; name "
            f"another of {listed}",
        )
    kind = schema.field(label).type
    if not (types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind)):
        raise Refusal(
            "no-label-column",
            f"labels must be whole numbers or words, got {kind} in {label!r} of {file.name}; name another of {listed}",
        )


def _column(files: Sequence[Path], name: str) -> Any:
    import pyarrow as pa
    import pyarrow.parquet

    if not files:
        return None
    columns = [pyarrow.parquet.read_table(file, columns=[name])[name] for file in files]
    kinds = [pa.int64() if pa.types.is_integer(column.type) else pa.large_string() for column in columns]
    if len(set(kinds)) > 1:
        raise Refusal(
            "no-label-column",
            f"labels must be whole numbers in all files or words in all, got both in column {name!r}; mend them",
        )
    try:
        # Files may hold the same numbers or words in other widths.
        return pa.chunked_array(
            [chunk for column, kind in zip(columns, kinds, strict=True) for chunk in column.cast(kind).chunks], kinds[0]
        )
    except pa.ArrowInvalid as error:
        raise Refusal(
            "no-label-column", f"labels must be numbers of 64 bits, got others in column {name!r} ({error}); mend them"
        ) from error


def _classes(label: str, train: Any, test: Any) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Labels as numbers of classes, which are the values that occur in the training set, sorted."""
    import pyarrow as pa
    import pyarrow.compute

    if test is not None and test.type != train.type:
        raise Refusal(
            "no-label-column",
            f"labels must be whole numbers in all files or words in all, got {train.type} in training and {test.type} "
            f"in test files, in column {label!r}; mend them",
        )
    values = train.unique().drop_null()
    values = values.take(pyarrow.compute.array_sort_indices(values))
    numbers = []
    for name, column in (("training", train), ("test", test)):
        found = pa.array([], pa.int32())
        if column is not None:
            found = pyarrow.compute.index_in(column, value_set=values)
        if found.null_count:
            raise Refusal(
                "no-label-column",
                f"every label must be one of the training set, got {found.null_count} {name} rows of column {label!r} "
                f"whose label is none or another; mend them",
            )
        numbers.append(found.to_numpy().astype(np.int64))
    if len(values) < 2:
        raise Refusal(
            "no-label-column",
            f"there must be at least two classes, got {len(values)} in column {label!r}; name the column of labels",
        )
    return numbers[0], numbers[1], len(values)
