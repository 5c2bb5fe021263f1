import numpy as np
import pytest
import torch

from normcore.data.arrays import Arrays
from normcore.data.dataset import Resident, find, load
from normcore.data.digits import Digits
from normcore.data.folders import DataFolders, DatasetNotFound
from normcore.data.images import mean_and_std
from normcore.menu.datasets import Cifar10Spec, DigitsSpec
from normcore.refusal import Refusal
from normcore.spec import JobSpec

N, M, SHAPE = 23, 7, (3, 6, 5)
RNG = np.random.default_rng(0)
ARRAYS = Arrays(
    RNG.integers(0, 256, (N, *SHAPE), dtype=np.uint8),
    np.arange(N),
    RNG.integers(0, 256, (M, *SHAPE), dtype=np.uint8),
    np.arange(M),
)
"""The label of an image is its number."""


def resident(**knobs) -> Resident:
    return Resident(ARRAYS, **({"batch_size": 5, "seed": 0, "dtype": torch.float64} | knobs))


def bytes_of(data: Resident, x: torch.Tensor) -> torch.Tensor:
    """The images of a batch before they were normalized."""
    raw = (x * data.normalization.std.view(3, 1, 1) + data.normalization.mean.view(3, 1, 1)) * 255
    torch.testing.assert_close(raw, raw.round(), rtol=0, atol=1e-9)
    return raw.round().to(torch.uint8)


def test_a_batch_holds_normalized_images_and_their_labels():
    data = resident()
    batch = data.batch(3)
    x, y = batch.inputs, batch.labels
    assert (x.shape, x.dtype, y.dtype) == ((5, *SHAPE), torch.float64, torch.int64)
    assert torch.equal(bytes_of(data, x), data.train_inputs[y])


def test_an_epoch_is_every_image_at_most_once_in_whole_batches_and_another_epoch_another_order():
    data = resident()
    assert data.steps_per_epoch == 4
    epochs = [torch.cat([data.batch(4 * epoch + k).labels for k in range(4)]).tolist() for epoch in range(3)]
    assert all(len(set(epoch)) == 20 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_a_batch_is_a_function_of_seed_and_step_alone():
    knobs = {"crop_padding": 2, "flip": True}
    forward, backward = resident(**knobs), resident(**knobs)
    batches = [forward.batch(step) for step in range(12)]
    torch.rand(10)
    for step in reversed(range(12)):
        again = backward.batch(step)
        assert torch.equal(again.inputs, batches[step].inputs)
        assert torch.equal(again.labels, batches[step].labels)
    assert not torch.equal(resident(seed=1, **knobs).batch(0).labels, batches[0].labels)


def test_augmentation_does_not_change_the_order():
    for step in range(9):
        assert torch.equal(resident().batch(step).labels, resident(crop_padding=2, flip=True).batch(step).labels)


def test_crops_are_windows_of_the_image_in_a_black_frame_at_every_place_equally_often():
    data, padding, places = resident(crop_padding=2), 2, []
    padded = torch.nn.functional.pad(data.train_inputs, (padding,) * 4)
    for step in range(400):
        batch = data.batch(step)
        x, y = batch.inputs, batch.labels
        for image, label in zip(bytes_of(data, x), y, strict=True):
            matches = [
                (top, left)
                for top in range(5)
                for left in range(5)
                if torch.equal(image, padded[label, :, top : top + 6, left : left + 5])
            ]
            assert len(matches) == 1
            places += matches
    counts = np.bincount([5 * top + left for top, left in places], minlength=25)
    # 2,000 crops in 25 places: 80 each, with a standard deviation below 9.
    assert counts.min() > 40
    assert counts.max() < 120


def test_flips_mirror_half_of_the_images_left_to_right():
    data, mirrored = resident(flip=True), 0
    for step in range(200):
        batch = data.batch(step)
        x, y = batch.inputs, batch.labels
        for image, label in zip(bytes_of(data, x), y, strict=True):
            original = data.train_inputs[label]
            flipped = torch.equal(image, original.flip(2))
            assert flipped or torch.equal(image, original)
            mirrored += flipped
    assert 400 < mirrored < 600


def test_training_images_have_mean_zero_and_deviation_one_in_each_channel():
    data = resident()
    x = data.normalization(data.train_inputs)
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-13)
    torch.testing.assert_close(x.std((0, 2, 3), correction=0), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-13)


def test_mean_and_std_equal_float64_arithmetic():
    images = torch.from_numpy(ARRAYS.train_inputs)
    mean, std = mean_and_std(images)
    torch.testing.assert_close(mean, images.double().mean((0, 2, 3)) / 255)
    torch.testing.assert_close(std, images.double().std((0, 2, 3), correction=0) / 255)


def test_test_batches_are_the_test_set_in_order_normalized_like_the_training_set():
    data = resident(crop_padding=2, flip=True)
    batches = list(data.test_batches(3))
    assert [len(batch) for batch in batches] == [3, 3, 1]
    assert torch.equal(
        torch.cat([bytes_of(data, batch.inputs) for batch in batches]), torch.from_numpy(ARRAYS.test_inputs)
    )
    assert torch.cat([batch.labels for batch in batches]).tolist() == list(range(M))


def test_inputs_stay_bytes_on_the_device():
    assert resident().train_inputs.dtype == torch.uint8


def test_a_batch_may_be_the_whole_training_set_and_not_more():
    assert resident(batch_size=N).steps_per_epoch == 1
    sentence = f"got batch_size {N + 1} and {N} training samples; set batch_size to at most {N}"
    with pytest.raises(Refusal, match=sentence) as refused:
        resident(batch_size=N + 1)
    assert refused.value.code == "batch-larger-than-data"


def test_load_reads_what_the_job_says(tmp_path):
    spec = JobSpec.model_validate(
        {
            "model": {"kind": "mlp"},
            "data": {"kind": "digits", "size": 16, "crop_padding": 3},
            "batch_size": 10,
            "seed": 4,
            "precision": "float64",
        }
    )
    data = load(spec, folders=DataFolders(cache_dir=tmp_path))
    assert (data.num_train, data.num_test, data.batch_size) == (1437, 360, 10)
    x = data.batch(0).inputs
    arrays = Digits(size=16).arrays(DataFolders(cache_dir=tmp_path))
    expected = Resident(arrays, batch_size=10, seed=4, crop_padding=3, dtype=torch.float64).batch(0)
    assert torch.equal(x, expected.inputs)
    assert (x.shape, x.dtype) == ((10, 1, 16, 16), torch.float64)


def test_find_looks_for_the_dataset_of_the_spec(tmp_path):
    folders = DataFolders(tmp_path, tmp_path, hub=False)
    find(DigitsSpec(), folders)
    with pytest.raises(DatasetNotFound, match="cifar10 needs parquet files"):
        find(Cifar10Spec(), folders)


FORMS = {
    "gaussian": {"kind": "gaussian", "num_samples": 50},
    "augmented": {"kind": "digits", "size": 8, "crop_padding": 2},
    **{arrange: {"kind": "digits", "arrange": arrange} for arrange in ("rows", "pixels", "tokens")},
    "divided": {"kind": "digits", "size": 8, "validation": 0.4, "label_noise": 0.3, "classes_per_batch": 3},
}


@pytest.mark.parametrize("form", FORMS)
def test_whatever_the_data_a_batch_is_a_function_of_seed_and_step_alone(form, folders):
    def loaded(seed: int) -> Resident:
        job = {"model": {"kind": "mlp"}, "data": FORMS[form], "batch_size": 20, "seed": seed}
        return load(JobSpec.model_validate(job), folders=folders)

    first, second = loaded(5), loaded(5)
    steps = [0, 1, first.steps_per_epoch - 1, first.steps_per_epoch, 3 * first.steps_per_epoch + 1]
    batches = [first.batch(step) for step in steps]
    assert not torch.equal(loaded(6).batch(0).labels, batches[0].labels)
    for step, batch in reversed(list(zip(steps, batches, strict=True))):
        again = second.batch(step)
        assert torch.equal(again.inputs, batch.inputs)
        assert torch.equal(again.labels, batch.labels)
        assert again.mask is batch.mask is None or torch.equal(again.mask, batch.mask)
