"""Where datasets are looked for and what is made of them is kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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


class DatasetNotFound(Refusal):
    """A dataset is neither in the data folder nor to be had elsewhere; the message says where to put it."""

    def __init__(self, detail: str) -> None:
        super().__init__("dataset-not-found", detail)
