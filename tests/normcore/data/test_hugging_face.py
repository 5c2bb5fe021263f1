"""What cifar100, mnist and fashion_mnist have of their own; what they share stands in test_cifar10.py."""

import io
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from normcore.data.cifar100 import Cifar100
from normcore.data.fashion_mnist import FashionMnist
from normcore.data.folders import DataFolders, DatasetNotFound
from normcore.data.mnist import Mnist
from normcore.menu.hub_datasets import Cifar100Spec, FashionMnistSpec, MnistSpec
from normcore.refusal import Refusal

HOMES = {Cifar100: "uoft-cs/cifar100", Mnist: "ylecun/mnist", FashionMnist: "zalando-datasets/fashion_mnist"}
SPECS = (Cifar100Spec, MnistSpec, FashionMnistSpec)


@pytest.fixture
def folders(tmp_path, monkeypatch) -> DataFolders:
    """Datasets of 10 training and 4 test images count as complete."""
    for spec in SPECS:
        monkeypatch.setattr(spec, "num_samples", 10)
        monkeypatch.setattr(spec, "num_test", 4)
    return DataFolders(tmp_path / "data", tmp_path / "cache", hub=False)


def write(folder: Path, image: str, labels: dict[str, int], shape: tuple[int, ...], train: int = 10) -> np.ndarray:
    """Parquet files with columns of so many classes; returns the test images."""
    features = datasets.Features(
        {image: datasets.Image()} | {name: datasets.ClassLabel(num_classes=n) for name, n in labels.items()}
    )
    for split, count in (("train", train), ("test", 4)):
        pixels = np.random.default_rng(count).integers(0, 256, (count, *shape), dtype=np.uint8)
        cells = []
        for one in pixels:
            buffer = io.BytesIO()
            Image.fromarray(one).save(buffer, "PNG")
            cells.append({"bytes": buffer.getvalue(), "path": None})
        rows = {image: cells} | {name: np.arange(count) % n for name, n in labels.items()}
        (folder / "plain").mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "plain" / f"{split}-0-of-1.parquet")
    return pixels


def test_cifar100_has_fine_and_coarse_labels_of_images_that_are_decoded_once(folders):
    labels = {"fine_label": 7, "coarse_label": 3}
    pixels = write(folders.data_dir / "uoft-cs/cifar100", "img", labels, (32, 32, 3))
    fine, coarse = (Cifar100(labels=kind).arrays(folders) for kind in ("fine", "coarse"))
    np.testing.assert_array_equal(fine.test_inputs, pixels.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(coarse.test_inputs, fine.test_inputs)
    np.testing.assert_array_equal(fine.train_labels, np.arange(10) % 7)
    np.testing.assert_array_equal(coarse.train_labels, np.arange(10) % 3)
    assert len(list(folders.cache_dir.iterdir())) == 1
    assert (Cifar100Spec().num_outputs, Cifar100Spec(labels="coarse").num_outputs) == (100, 20)


@pytest.mark.parametrize("part", [Mnist, FashionMnist])
def test_grey_images_come_in_their_own_size_or_in_a_black_frame(folders, part):
    pixels = write(folders.data_dir / HOMES[part], "image", {"label": 10}, (28, 28))
    native, framed = part().arrays(folders), part(size=32).arrays(folders)
    assert framed.train_inputs.shape == (10, 1, 32, 32)
    np.testing.assert_array_equal(native.test_inputs[:, 0], pixels)
    np.testing.assert_array_equal(framed.test_inputs[:, :, 2:30, 2:30], native.test_inputs)
    assert framed.test_inputs.sum(dtype=np.int64) == native.test_inputs.sum(dtype=np.int64)
    np.testing.assert_array_equal(framed.test_labels, np.arange(4))


@pytest.mark.parametrize("part", HOMES)
def test_what_is_not_there_is_refused_with_its_place(folders, part):
    with pytest.raises(DatasetNotFound, match=rf"parquet files in .*, found none, .*; put {HOMES[part]} there"):
        part().find(folders)


@pytest.mark.parametrize(("part", "title"), [(Mnist, "MNIST"), (FashionMnist, "Fashion-MNIST")])
def test_what_is_cut_short_is_refused(folders, part, title):
    write(folders.data_dir / HOMES[part], "image", {"label": 10}, (28, 28), train=9)
    with pytest.raises(Refusal, match=rf"^{title} has 10 training images, got 9 from") as no:
        part().arrays(folders)
    assert no.value.code == "dataset-incomplete"
