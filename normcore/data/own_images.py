"""What the two kinds of one's own images share: where they are kept, and how they become arrays."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from importlib.util import find_spec
from pathlib import Path

from normcore.data.arrays import Arrays, cached
from normcore.data.folders import DataFolders, DatasetNotFound
from normcore.data.image_set import ImageSets


class OwnImages(ABC):
    """Images below the data folder, decoded at one size.

    Args:
        path: Below the data folder.
        size: Height and width in pixels.
        channels: 3 for colour, 1 for grey.
        test_share: What share is held out, where there is no test set.
        split_seed: Chooses the images that are held out.
        crop_padding: Pixels around an image for random crops.
        flip: Mirror each training image left to right with probability one half.
    """

    kind: str

    def __init__(
        self,
        *,
        path: str,
        size: int = 32,
        channels: int = 3,
        test_share: float = 0.1,
        split_seed: int = 0,
        crop_padding: int = 0,
        flip: bool = False,
    ) -> None:
        self.path, self.size, self.channels = path, size, channels
        self.test_share, self.split_seed = test_share, split_seed
        self.crop_padding, self.flip = crop_padding, flip

    def find(self, folders: DataFolders) -> None:
        """Raise `Refusal` where the images cannot be had; reads none."""
        folders.inside(self.path)
        if find_spec("PIL") is None:
            raise DatasetNotFound(
                f"{self.kind} is read with the package PIL, which is not installed; "
                f"install it: pip install 'normcore[data]'"
            )

    @abstractmethod
    def sets(self, folders: DataFolders) -> ImageSets:
        """Training and test set, undecoded; raises `Refusal` like `find`, or where there is no dataset in the files."""

    def arrays(self, folders: DataFolders) -> Arrays:
        """All images and labels, decoded once and kept in the cache folder.

        Raises:
            Refusal: Like `sets`, or an image cannot be read (code `unreadable-image`).
        """
        sets = self.sets(folders)
        return cached(sets.kept, lambda: Arrays(sets.train.all(), sets.train.labels, sets.test.all(), sets.test.labels))

    def _kept(self, folders: DataFolders, files: list[Path]) -> Path:
        stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        knobs = sorted((name, value) for name, value in vars(self).items() if name not in ("crop_padding", "flip"))
        digest = hashlib.sha256(repr((knobs, stats)).encode()).hexdigest()[:16]
        return folders.cache_dir / f"{self.kind}-{digest}"
