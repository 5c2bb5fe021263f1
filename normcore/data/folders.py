"""Where datasets are looked for and what is made of them is kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePath

from normcore.refusal import Refusal


@dataclass(frozen=True, slots=True)
class DataFolders:
    """The two folders of datasets, and whether the hub may be asked.

    Example:
        >>> DataFolders(data_dir=Path("/srv/data")).data_dir.name
        'data'
    """

    data_dir: Path = Path("data")
    """Where datasets lie, in the Hugging Face folder layout (`uoft-cs/cifar10/...`); only read."""
    cache_dir: Path = Path("var/cache")
    """Where decoded arrays are kept; may be deleted at any time between trainings."""
    hub: bool = True
    """Fetch datasets that are not in `data_dir` from the Hugging Face hub."""

    def inside(self, path: str) -> Path:
        """Where a path below the data folder leads, links followed.

        Raises:
            Refusal: It leads out of the data folder (code `outside-data-folder`), or nowhere (`path-not-found`).
        """
        if "\0" in path or PurePath(path).is_absolute() or ".." in PurePath(path).parts:
            raise outside_data_folder(path)
        try:
            found = (self.data_dir / path).resolve(strict=True)
        except (OSError, RuntimeError) as error:  # a link that leads to itself is a RuntimeError
            raise Refusal(
                "path-not-found",
                f"there must be something at path {path!r} in the data folder, found nothing; put it there or set "
                f"NORMCORE_DATA_DIR",
            ) from error
        self.check_inside(found, path)
        return found

    def check_inside(self, found: Path, path: str) -> None:
        """Raise `Refusal` where a resolved path is not below the data folder."""
        if not found.is_relative_to(self.data_dir.resolve()):
            raise outside_data_folder(path)


def outside_data_folder(path: str) -> Refusal:
    """The refusal to read what is not in the data folder."""
    return Refusal(
        "outside-data-folder",
        f"a path must stay below the data folder, got {path!r}; give one without '..', without a leading slash and "
        f"without links that lead elsewhere",
    )


class DatasetNotFound(Refusal):
    """A dataset is neither in the data folder nor to be had elsewhere; the message says where to put it."""

    def __init__(self, detail: str) -> None:
        super().__init__("dataset-not-found", detail)
