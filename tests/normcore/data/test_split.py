import numpy as np
import pytest
import torch
from pydantic import ValidationError

from normcore.data.arrays import Arrays
from normcore.data.dataset import load
from normcore.data.split import hold_out, mislabel
from normcore.menu.datasets import DigitsSpec
from normcore.records import Metrics
from normcore.spec import JobSpec
from normcore.train import train

INPUTS = np.arange(50, dtype=np.float64).reshape(25, 2)
ARRAYS = Arrays(INPUTS, np.arange(25), INPUTS[:3], np.arange(3))


def test_what_is_held_out_and_what_is_left_are_the_training_set_and_the_test_set_stays():
    rest, held = hold_out(ARRAYS, 7, seed=0)
    assert (len(rest.train_labels), len(held)) == (18, 7)
    assert sorted([*rest.train_labels, *held.labels]) == list(range(25))
    for inputs, labels in ((rest.train_inputs, rest.train_labels), (held.inputs, held.labels)):
        np.testing.assert_array_equal(inputs, INPUTS[labels])
        assert sorted(labels) == list(labels)
    assert rest.test_inputs is ARRAYS.test_inputs
    assert rest.test_labels is ARRAYS.test_labels


def test_a_larger_validation_set_holds_every_smaller_one_and_another_seed_another_one():
    small, large, other = (set(hold_out(ARRAYS, n, seed=s)[1].labels.tolist()) for n, s in ((5, 0), (10, 0), (5, 1)))
    assert small < large
    assert small != other


def test_label_noise_replaces_exactly_its_share_by_other_classes_each_as_likely():
    labels = np.arange(40_000) % 5
    noisy = mislabel(labels, 0.4, 5, seed=0)
    shifts = np.bincount((noisy - labels) % 5, minlength=5)
    assert shifts[0] == 24_000
    # 4,000 of each shift, with a standard deviation of 55.
    assert np.abs(shifts[1:] - 4000).max() < 250
    np.testing.assert_array_equal(labels, np.arange(40_000) % 5)


def test_more_label_noise_keeps_the_labels_that_were_wrong_before():
    labels = np.arange(200) % 5
    little, much = mislabel(labels, 0.2, 5, seed=3), mislabel(labels, 0.5, 5, seed=3)
    wrong = little != labels
    np.testing.assert_array_equal(little[wrong], much[wrong])
    assert (little != mislabel(labels, 0.2, 5, seed=4)).any()


def data(folders, **knobs):
    job = {"model": {"kind": "mlp"}, "data": {"kind": "digits", "size": 8, **knobs}, "batch_size": 100}
    return load(JobSpec.model_validate(job), folders=folders)


def test_a_job_trains_on_what_is_left_with_wrong_labels_and_is_judged_by_true_ones(folders):
    plain = data(folders)
    divided, noisy = data(folders, validation=0.3), data(folders, validation=0.3, label_noise=0.25)
    spec = DigitsSpec(size=8, validation=0.3)
    assert (divided.num_train, divided.num_validation) == (spec.num_train, spec.num_validation) == (1006, 431)
    assert divided.num_train + divided.num_validation == plain.num_train
    assert torch.equal(noisy.train_inputs, divided.train_inputs)
    assert (noisy.train_labels != divided.train_labels).sum() == round(0.25 * 1006)
    for one, other in (
        (noisy.validation_batches, divided.validation_batches),
        (noisy.test_batches, plain.test_batches),
    ):
        for mine, theirs in zip(one(100), other(100), strict=True):
            assert torch.equal(mine.labels, theirs.labels)
    assert list(plain.validation_batches()) == []


def test_held_out_images_are_normalized_by_the_training_set_and_in_no_batch(folders):
    divided = data(folders, validation=0.3)
    held = torch.cat([batch.inputs for batch in divided.validation_batches(100)])
    assert len(held) == 431
    native = data(folders).train_inputs
    normalized = {tuple(image.flatten().tolist()) for image in divided.normalization(native)}
    assert {tuple(image.flatten().tolist()) for image in held} <= normalized
    trained = {tuple(x.flatten().tolist()) for step in range(10) for x in divided.batch(step).inputs}
    assert not trained & {tuple(image.flatten().tolist()) for image in held}


def test_the_split_does_not_hang_on_the_seed_of_the_job():
    job = {"model": {"kind": "mlp"}, "data": {"kind": "digits", "size": 8, "validation": 0.1, "label_noise": 0.1}}
    first, second = (load(JobSpec.model_validate(job | {"seed": seed})) for seed in (0, 1))
    assert torch.equal(first.train_inputs, second.train_inputs)
    assert torch.equal(first.train_labels, second.train_labels)


def test_steps_are_counted_by_what_is_left():
    job = {"model": {"kind": "mlp"}, "data": {"kind": "digits", "validation": 0.5}, "batch_size": 100, "epochs": 3}
    assert JobSpec.model_validate(job).num_steps == 3 * 7


@pytest.mark.parametrize(
    ("knobs", "sentence"),
    [
        ({"validation": 0.6}, "less than or equal to 0.5"),
        ({"label_noise": 1.1}, "less than or equal to 1"),
        ({"classes_per_batch": 11}, "may be at most the number of classes, got 11 of 10; lower it"),
    ],
)
def test_a_mistake_is_refused_in_a_sentence(knobs, sentence):
    with pytest.raises(ValidationError, match=sentence):
        DigitsSpec(**knobs)


def test_each_evaluation_tells_of_the_validation_set_beside_the_test_set(folders):
    job = {"model": {"kind": "mlp", "hidden": [8]}, "batch_size": 50, "steps": 6, "evaluate_every": 3}
    spec = JobSpec.model_validate(job | {"data": {"kind": "digits", "size": 8, "validation": 0.2, "label_noise": 0.5}})
    points = [p for record in train(spec, folders=folders) if isinstance(record, Metrics) for p in record.points]
    validated = {(p.key, p.step): p.value for p in points if p.key.startswith("validation/")}
    assert list(validated) == [(f"validation/{what}", step) for step in (3, 6) for what in ("loss", "accuracy")]
    # Of 287 held out, with labels that are true.
    assert all(abs(value * 287 - round(value * 287)) < 1e-9 for (key, _), value in validated.items() if "acc" in key)
    plain = JobSpec.model_validate(job | {"data": {"kind": "digits", "size": 8}})
    keys = {p.key for record in train(plain, folders=folders) if isinstance(record, Metrics) for p in record.points}
    assert not any(key.startswith("validation/") for key in keys)
