"""How many images and classes there are in files of one's own: counted, not read."""

from __future__ import annotations

from pydantic import ValidationError

from normcore.data.folders import DataFolders
from normcore.data.held_out import num_held_out
from normcore.data.image_listing import listing
from normcore.data.parquet_files import parquet_files
from normcore.menu.labelled import num_validation
from normcore.menu.own_datasets import MEASURED, ImageFolderSpec, OwnImagesSpec, ParquetSpec
from normcore.refusal import Refusal
from normcore.spec import JobSpec


def measured(spec: JobSpec, folders: DataFolders | None = None) -> JobSpec:
    """The job with the sizes of its data filled in; the same job where they are known.

    Torch-free. Opens no image; takes some seconds for a million files, and nothing for datasets of fixed size.

    Args:
        spec: The job.
        folders: Where datasets lie; `data` and `var/cache` below the working directory when not given.

    Raises:
        Refusal: The files cannot be read; or the job says other sizes, of files that have changed since (code
            `dataset-changed`); or the job cannot be as it is with so many images (`steps-do-not-fit`).

    Example:
        >>> spec = JobSpec.model_validate({"model": {"kind": "vgg"}, "data": {"kind": "digits"}})
        >>> measured(spec) is spec
        True
    """
    data = spec.data
    if not isinstance(data, OwnImagesSpec):
        return spec
    found = _measure(data, folders or DataFolders())
    said = {name: getattr(data, name) for name in MEASURED}
    if said == found:
        return spec
    changed = [name for name in MEASURED if said[name] not in (None, found[name])]
    if changed:
        was, now = (", ".join(f"{name} {values[name]}" for name in changed) for values in (said, found))
        raise Refusal(
            "dataset-changed",
            f"the files of {data.path!r} must be those that the job was taken for, which had {was}, got {now}; put "
            f"them back, or order a new job and leave these numbers out",
        )
    try:
        return JobSpec.model_validate(spec.model_dump() | {"data": data.model_dump() | found})
    except ValidationError as error:
        reason = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise Refusal("steps-do-not-fit", f"with {found['num_train']} training images: {reason}") from error


def _measure(data: OwnImagesSpec, folders: DataFolders) -> dict[str, int | str]:
    if isinstance(data, ImageFolderSpec):
        images = listing(folders, data.path)
        train, test = len(images.train), None if images.test is None else len(images.test)
        num_classes, fingerprint = len(images.classes), images.fingerprint
    else:
        assert isinstance(data, ParquetSpec)
        rows = parquet_files(folders, data.path, data.image, data.label)
        train, test = len(rows.train_labels), len(rows.test_labels) if rows.test else None
        num_classes, fingerprint = rows.num_classes, rows.fingerprint
    if test is None:
        test = num_held_out(train, data.test_share)
        train -= test
    validation = num_validation(train, data.validation)
    return dict(zip(MEASURED, (train - validation, test, num_classes, fingerprint, validation), strict=True))
