"""Images in files, decoded when they are asked for."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from normcore.refusal import Refusal

MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Images and their labels, of which any can be decoded on its own."""

    labels: NDArray[np.int64]
    """`(N,)`"""
    encoded: Callable[[int], bytes]
    """The file of an image, as png or jpg."""
    name: Callable[[int], str]
    """What a person finds it by."""
    size: int
    channels: int

    def image(self, number: int) -> NDArray[np.uint8]:
        """An image, `(C, size, size)`.

        Raises:
            Refusal: It cannot be read (code `unreadable-image`).
        """
        from PIL import Image

        try:
            with Image.open(io.BytesIO(self.encoded(number))) as image:
                return fitted(image.convert(MODES[self.channels]), self.size)
        except (OSError, ValueError, SyntaxError, TypeError, Image.DecompressionBombError) as error:
            raise Refusal(
                "unreadable-image",
                f"every image must be a png or jpg that can be read, got {self.name(number)}, which {_trouble(error)}; "
                f"mend it or take it out",
            ) from error

    def only(self, numbers: NDArray[np.int64]) -> ImageSet:
        """The set of some of these images, in the order of their numbers."""
        return replace(
            self,
            labels=self.labels[numbers],
            encoded=lambda number: self.encoded(int(numbers[number])),
            name=lambda number: self.name(int(numbers[number])),
        )

    def images(self, numbers: Sequence[int]) -> NDArray[np.uint8]:
        """Some images, `(len(numbers), C, size, size)`, one after the other."""
        found = np.empty((len(numbers), self.channels, self.size, self.size), dtype=np.uint8)
        for place, number in enumerate(numbers):
            found[place] = self.image(number)
        return found

    def all(self) -> NDArray[np.uint8]:
        """All images, decoded by as many threads as there are processors."""
        found = np.empty((len(self.labels), self.channels, self.size, self.size), dtype=np.uint8)

        def put(number: int) -> None:
            found[number] = self.image(number)

        with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None) as threads:
            for _ in threads.map(put, range(len(found))):
                pass
        return found


def _trouble(error: Exception) -> str:
    """What is wrong with an image. PIL would name the place in memory that it read a file of no known format from."""
    from PIL import UnidentifiedImageError

    return "has no format that is known" if isinstance(error, UnidentifiedImageError) else f"says: {error}"


@dataclass(frozen=True, slots=True)
class ImageSets:
    """A training and a test set, what is held out for validation, and what is kept of them."""

    train: ImageSet
    test: ImageSet
    kept: Path
    """A folder of the cache for these files at this size; another one as soon as a file is another one."""
    validation: ImageSet | None = None


def fitted(image: object, size: int) -> NDArray[np.uint8]:
    """A PIL image `(C, size, size)`: its shorter side resized to `size`, antialiased, and its middle cut out."""
    from PIL import Image

    assert isinstance(image, Image.Image)
    width, height = image.size
    if min(width, height) != size:
        scale = size / min(width, height)
        width, height = max(size, round(width * scale)), max(size, round(height * scale))
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    pixels = np.asarray(image.crop((left, top, left + size, top + size)))
    return pixels.reshape(size, size, -1).transpose(2, 0, 1)
