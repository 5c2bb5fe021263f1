import subprocess
import sys

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.datasets import load_digits

from normcore.data import digits
from normcore.data.dataset import load
from normcore.data.digits import Digits, ink_tokens
from normcore.data.folders import DataFolders, DatasetNotFound
from normcore.menu.datasets import DigitsSpec
from normcore.spec import JobSpec


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> DataFolders:
    return DataFolders(cache_dir=tmp_path_factory.mktemp("cache"))


def test_inputs_and_labels_are_scikit_learns_in_its_order(folders):
    arrays, raw = Digits(size=8).arrays(folders), load_digits()
    images = np.concatenate([arrays.train_inputs, arrays.test_inputs])
    np.testing.assert_allclose(images[:, 0], raw.images * 255 / 16, atol=0.5)
    np.testing.assert_array_equal(np.concatenate([arrays.train_labels, arrays.test_labels]), raw.target)
    assert (len(arrays.train_labels), len(arrays.test_labels)) == (1437, 360)
    assert (images.dtype, arrays.train_labels.dtype) == (np.uint8, np.int64)


@pytest.mark.parametrize("size", [16, 32])
def test_larger_sizes_are_upsampled_bilinearly(folders, size):
    arrays, native = Digits(size=size).arrays(folders), Digits(size=8).arrays(folders)
    assert arrays.train_inputs.shape == (1437, 1, size, size)
    # Pixel i lies at (i + 1/2) 8 / size - 1/2 of the original, between two of its pixels in each direction.
    at = np.clip((np.arange(size) + 0.5) * 8 / size - 0.5, 0, 7)
    low = np.minimum(at.astype(int), 6)
    weights = np.zeros((size, 8))
    weights[np.arange(size), low], weights[np.arange(size), low + 1] = 1 - (at - low), at - low
    expected = weights @ native.train_inputs[:50, 0].astype(float) @ weights.T
    np.testing.assert_allclose(arrays.train_inputs[:50, 0], expected, atol=0.51)


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
        one = Digits(size=32).arrays(folders).train_inputs
        torch.set_num_threads(2)
        two = Digits(size=32).arrays(folders).train_inputs
    finally:
        torch.set_num_threads(threads)
    np.testing.assert_array_equal(one, two)


def batch(folders, step=0, **knobs):
    fields = {"model": {"kind": "mlp"}, "data": {"kind": "digits", **knobs}, "batch_size": 6, "precision": "float64"}
    return load(JobSpec.model_validate(fields), folders=folders).batch(step)


def test_rows_and_pixels_are_the_same_images_cut_into_sequences(folders):
    for knobs in ({"size": 8}, {"size": 16, "crop_padding": 2}):
        images = batch(folders, **knobs)
        for arrange in ("rows", "pixels"):
            sequences = batch(folders, arrange=arrange, **knobs)
            size = knobs["size"]
            assert sequences.inputs.shape == (6, *DigitsSpec(size=size, arrange=arrange).shape)
            assert torch.equal(sequences.inputs.reshape(6, size, size), images.inputs[:, 0])
            assert torch.equal(sequences.labels, images.labels)
            assert sequences.mask is None


def test_tokens_are_the_ink_in_reading_order(folders):
    arrays, raw = Digits(arrange="tokens").arrays(folders), load_digits().images
    assert arrays.train_inputs.shape == (1437, 64)
    for number in (0, 17, 1436):
        written = []
        for place, ink in enumerate(raw[number].flatten()):
            # 16 shades of ink in four quarters of the scale from 0 to 16, white itself in the last.
            if ink:
                written.append(1 + 4 * place + min(int(np.rint(ink * 255 / 16)) // 64, 3))
        expected = written + [0] * (64 - len(written))
        assert arrays.train_inputs[number].tolist() == expected
    assert arrays.train_inputs.max() < DigitsSpec.vocabulary


def test_the_least_and_the_most_ink_lie_at_the_ends_of_the_vocabulary():
    images = np.zeros((2, 1, 8, 8), np.uint8)
    images[0, 0, 0, 0], images[1, 0, 7, 7] = 1, 255
    assert ink_tokens(images)[:, 0].tolist() == [1, DigitsSpec.vocabulary - 1]


def test_tokens_come_with_a_mask_of_what_is_no_padding(folders):
    tokens, images = batch(folders, arrange="tokens"), batch(folders, size=8)
    assert (tokens.inputs.dtype, tokens.inputs.shape) == (torch.int64, (6, 64))
    assert torch.equal(tokens.mask, tokens.inputs != 0)
    assert torch.equal(tokens.labels, images.labels)
    lengths = tokens.mask.sum(1)
    assert torch.equal(tokens.mask, torch.arange(64) < lengths[:, None])
    assert len(set(lengths.tolist())) > 1


def test_tokens_of_images_that_are_no_longer_native_are_refused():
    DigitsSpec(arrange="tokens", size=8)
    for knobs in ({"size": 16}, {"crop_padding": 1}):
        with pytest.raises(ValidationError, match=r"native 8x8 images as they are, got size .*; leave both out"):
            DigitsSpec(arrange="tokens", **knobs)


def test_an_order_of_tokens_is_read_again_as_it_was_written_down():
    spec = DigitsSpec(arrange="tokens")
    assert DigitsSpec.model_validate_json(spec.model_dump_json()) == spec
