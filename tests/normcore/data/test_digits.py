import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from normcore.data import digits
from normcore.data.digits import Digits
from normcore.data.folders import DataFolders, DatasetNotFound


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> DataFolders:
    return DataFolders(cache_dir=tmp_path_factory.mktemp("cache"))


def test_images_and_labels_are_scikit_learns_in_its_order(folders):
    arrays, raw = Digits(size=8).arrays(folders), load_digits()
    images = np.concatenate([arrays.train_images, arrays.test_images])
    np.testing.assert_allclose(images[:, 0], raw.images * 255 / 16, atol=0.5)
    np.testing.assert_array_equal(np.concatenate([arrays.train_labels, arrays.test_labels]), raw.target)
    assert (len(arrays.train_labels), len(arrays.test_labels)) == (1437, 360)
    assert (images.dtype, arrays.train_labels.dtype) == (np.uint8, np.int64)


@pytest.mark.parametrize("size", [16, 32])
def test_larger_sizes_are_upsampled_bilinearly(folders, size):
    arrays, native = Digits(size=size).arrays(folders), Digits(size=8).arrays(folders)
    assert arrays.train_images.shape == (1437, 1, size, size)
    # Pixel i lies at (i + 1/2) 8 / size - 1/2 of the original, between two of its pixels in each direction.
    at = np.clip((np.arange(size) + 0.5) * 8 / size - 0.5, 0, 7)
    low = np.minimum(at.astype(int), 6)
    weights = np.zeros((size, 8))
    weights[np.arange(size), low], weights[np.arange(size), low + 1] = 1 - (at - low), at - low
    expected = weights @ native.train_images[:50, 0].astype(float) @ weights.T
    np.testing.assert_allclose(arrays.train_images[:50, 0], expected, atol=0.51)


def test_a_second_process_needs_no_scikit_learn(folders):
    Digits(size=8).arrays(folders)
    code = (
        "import sys; from pathlib import Path; from normcore.data.digits import Digits;"
        "from normcore.data.folders import DataFolders;"
        "Digits(size=32).arrays(DataFolders(cache_dir=Path(sys.argv[1]))); assert 'sklearn' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(folders.cache_dir)], check=True)


def test_without_scikit_learn_the_remedy_is_said_unless_the_digits_are_kept(folders, tmp_path, monkeypatch):
    Digits(size=8).arrays(folders)
    monkeypatch.setattr(digits, "find_spec", lambda _: None)
    with pytest.raises(
        DatasetNotFound, match=r"scikit-learn, which is not installed; .* pip install 'normcore\[data\]'"
    ):
        Digits().find(DataFolders(cache_dir=tmp_path))
    Digits().find(folders)


def test_upsampling_does_not_depend_on_the_number_of_threads(folders):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = Digits(size=32).arrays(folders).train_images
        torch.set_num_threads(2)
        two = Digits(size=32).arrays(folders).train_images
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_array_equal(one, two)
