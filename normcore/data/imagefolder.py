"""One's own images, in folders named after their classes."""

from __future__ import annotations

import numpy as np

from normcore.data.folders import DataFolders
from normcore.data.held_out import split
from normcore.data.image_listing import listing
from normcore.data.image_set import ImageSet, ImageSets
from normcore.data.own_images import OwnImages


class ImageFolder(OwnImages):
    """Images `train/<class>/*.png` or `.jpg`, and `test/<class>/...` or a share of the former held out.

    The knobs are those of `OwnImages`.
    """

    kind = "imagefolder"

    def sets(self, folders: DataFolders) -> ImageSets:
        """Training and test set, undecoded; raises like `normcore.data.image_listing.listing`."""
        self.find(folders)
        found = listing(folders, self.path)
        train, test = found.train, found.test
        if test is None:
            kept, held = split(len(train), self.test_share, self.split_seed)
            train, test = tuple(found.train[number] for number in kept), tuple(found.train[number] for number in held)
        files = [found.root / name for name, _ in (*train, *test)]

        def images(samples: tuple[tuple[str, int], ...]) -> ImageSet:
            labels = np.array([label for _, label in samples], dtype=np.int64)
            return ImageSet(
                labels,
                encoded=lambda number: (found.root / samples[number][0]).read_bytes(),
                name=lambda number: f"{self.path}/{samples[number][0]}",
                size=self.size,
                channels=self.channels,
            )

        return ImageSets(images(train), images(test), self._kept(folders, files))
