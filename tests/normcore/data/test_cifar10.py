import os
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest

from normcore.data import hugging_face
from normcore.data.cifar10 import Cifar10
from normcore.data.folders import DataFolders, DatasetNotFound
from normcore.refusal import Refusal


@pytest.fixture
def folders(tmp_path) -> DataFolders:
    return DataFolders(tmp_path / "data", tmp_path / "cache", hub=False)


def home_of(folders: DataFolders) -> Path:
    return folders.data_dir / "uoft-cs" / "cifar10"


@pytest.mark.usefixtures("small")
def test_inputs_and_labels_are_those_of_the_parquet_files(folders, write_cifar10):
    written = write_cifar10(home_of(folders))
    arrays = Cifar10().arrays(folders)
    np.testing.assert_array_equal(arrays.train_inputs, written["train"])
    np.testing.assert_array_equal(arrays.test_inputs, written["test"])
    np.testing.assert_array_equal(arrays.train_labels, np.arange(40) % 10)
    assert arrays.train_labels.dtype == np.int64


@pytest.mark.usefixtures("small")
def test_decoding_is_done_once_leaves_only_the_arrays_and_nothing_at_home(
    folders, write_cifar10, tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    write_cifar10(home_of(folders))
    first = Cifar10().arrays(folders)
    assert len(list(folders.cache_dir.iterdir())) == 1
    monkeypatch.setattr(hugging_face.HuggingFaceImages, "_decode", lambda *_: pytest.fail("decoded again"))
    np.testing.assert_array_equal(Cifar10().arrays(folders).train_inputs, first.train_inputs)


@pytest.mark.usefixtures("small")
def test_other_files_are_decoded_anew(folders, write_cifar10):
    write_cifar10(home_of(folders))
    Cifar10().arrays(folders)
    file = next(home_of(folders).rglob("test-*.parquet"))
    os.utime(file, (0, 0))
    Cifar10().arrays(folders)
    assert len(list(folders.cache_dir.iterdir())) == 2


@pytest.mark.usefixtures("small")
def test_a_dataset_that_is_cut_short_is_refused(folders, write_cifar10):
    write_cifar10(home_of(folders), train=39)
    with pytest.raises(Refusal, match=r"40 training images, got 39 from .*cifar10; fetch its") as no:
        Cifar10().arrays(folders)
    assert no.value.code == "dataset-incomplete"
    assert not list(folders.cache_dir.iterdir())


def test_not_found_says_where_to_put_it(folders):
    place = home_of(folders).absolute()
    sentence = (
        f"parquet files in {place}, found none, and the hub is switched off; put uoft-cs/cifar10 there or set NORM"
    )
    for ask in (Cifar10().find, Cifar10().arrays):
        with pytest.raises(DatasetNotFound, match=sentence) as refused:
            ask(folders)
        assert refused.value.code == "dataset-not-found"


def test_finding_reads_no_image(folders):
    home_of(folders).mkdir(parents=True)
    (home_of(folders) / "train.parquet").write_bytes(b"not read")
    Cifar10().find(folders)
    assert not folders.cache_dir.exists()


def test_a_missing_package_is_named_with_the_remedy(folders, monkeypatch):
    monkeypatch.setattr(hugging_face, "find_spec", lambda package: None if package == "PIL" else package)
    with pytest.raises(DatasetNotFound, match=r"package PIL, which is not installed; .*pip install 'normcore\[data\]'"):
        Cifar10().find(folders)


@pytest.mark.usefixtures("small")
def test_from_the_hub_where_the_folder_is_empty(folders, write_cifar10, hub):
    written = write_cifar10(hub)
    online = DataFolders(folders.data_dir, folders.cache_dir, hub=True)
    Cifar10().find(online)
    np.testing.assert_array_equal(Cifar10().arrays(online).test_inputs, written["test"])
    assert [path.name for path in folders.cache_dir.iterdir()] == ["cifar10-hub"]
    assert not folders.data_dir.exists()


FROM_THE_HUB = """
import sys
from pathlib import Path
from normcore.data.cifar10 import Cifar10
from normcore.data.folders import DataFolders
from normcore.menu.datasets import Cifar10Spec
Cifar10Spec.num_samples, Cifar10Spec.num_test = 40, 12
Cifar10().arrays(DataFolders(Path(sys.argv[1]), Path(sys.argv[2])))
"""


def test_no_dataset_is_left_in_the_home_directory(folders, write_cifar10, hub, tmp_path):
    write_cifar10(hub)
    home = tmp_path / "home"
    home.mkdir()
    environment = {"HOME": str(home), "HF_ENDPOINT": huggingface_hub.constants.ENDPOINT}
    command = [sys.executable, "-W", "error", "-c", FROM_THE_HUB, str(folders.data_dir), str(folders.cache_dir)]
    subprocess.run(command, check=True, env=environment)
    assert [path.name for path in folders.cache_dir.iterdir()] == ["cifar10-hub"]
    # The hub's client notes there which revision it has seen.
    assert sum(path.stat().st_size for path in home.rglob("*") if path.is_file()) < 1000


def test_a_hub_that_cannot_be_reached_is_said(folders, hub, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DatasetNotFound, match="found none, and the hub cannot be reached; put uoft-cs/cifar10 there"):
        Cifar10().find(DataFolders(folders.data_dir, folders.cache_dir, hub=True))


def test_the_real_dataset(tmp_path):
    data_dir = os.environ.get("NORMCORE_DATA_DIR")
    if data_dir is None or not home_of(DataFolders(Path(data_dir))).is_dir():
        pytest.skip("no CIFAR-10 in NORMCORE_DATA_DIR")
    arrays = Cifar10().arrays(DataFolders(Path(data_dir), tmp_path, hub=False))
    assert arrays.train_inputs.shape == (50_000, 3, 32, 32)
    assert arrays.test_inputs.shape == (10_000, 3, 32, 32)
    assert set(np.bincount(arrays.train_labels)) == {5000}
    assert set(np.bincount(arrays.test_labels)) == {1000}
    # The published means and deviations of the channels, to what lossy copies of the images move them.
    np.testing.assert_allclose(arrays.train_inputs.mean((0, 2, 3)) / 255, [0.4914, 0.4822, 0.4465], atol=5e-4)
    np.testing.assert_allclose(arrays.train_inputs.std((0, 2, 3)) / 255, [0.2470, 0.2435, 0.2616], atol=5e-3)
