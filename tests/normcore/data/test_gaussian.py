import numpy as np
import torch

from normcore.data.dataset import load
from normcore.data.folders import DataFolders
from normcore.data.gaussian import Gaussian
from normcore.spec import JobSpec


def arrays(**knobs):
    return Gaussian(**knobs).arrays(DataFolders())


def test_targets_are_one_matrix_times_the_vectors_in_both_sets():
    made = arrays()
    assert made.train_inputs.shape == made.test_inputs.shape == (1000, 10)
    assert {array.dtype for array in (made.train_inputs, made.train_labels)} == {np.dtype(np.float64)}
    matrix = np.linalg.lstsq(made.train_inputs, made.train_labels, rcond=None)[0]
    np.testing.assert_allclose(made.test_inputs @ matrix, made.test_labels, atol=1e-11)


def test_vectors_and_matrix_are_standard_normal_and_independent():
    made = arrays(size=50, num_samples=4000)
    matrix = np.linalg.lstsq(made.train_inputs, made.train_labels, rcond=None)[0]
    for numbers in (made.train_inputs, made.test_inputs, matrix):
        assert abs(numbers.mean()) < 4 / numbers.size**0.5
        assert abs(numbers.var() - 1) < 4 * (2 / numbers.size) ** 0.5
    assert abs((made.train_inputs * made.test_inputs).mean()) < 4 / made.train_inputs.size**0.5


def test_the_task_is_one_of_the_data_seed_and_not_of_the_job_seed():
    job = {"model": {"kind": "mlp"}, "data": {"kind": "gaussian"}, "batch_size": 1000, "precision": "float64"}

    def batch(**changes):
        batch = load(JobSpec.model_validate(job | changes)).batch(0)
        # A batch is the whole set in an order of the job's seed.
        return batch.inputs.sort(0).values, batch.labels.sort(0).values

    first, again, other = batch(), batch(seed=1), batch(data={"kind": "gaussian", "data_seed": 1})
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[0], other[0])


def test_batches_have_the_dtype_of_the_job():
    for precision, dtype in (("float32", torch.float32), ("float64", torch.float64)):
        data = load(
            JobSpec.model_validate(
                {"model": {"kind": "mlp"}, "data": {"kind": "gaussian"}, "batch_size": 8, "precision": precision}
            )
        )
        batch = data.batch(3)
        assert (batch.inputs.dtype, batch.labels.dtype, batch.mask) == (dtype, dtype, None)
        assert (batch.inputs.shape, batch.labels.shape) == ((8, 10), (8, 10))
