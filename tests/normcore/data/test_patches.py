import numpy as np
import torch
from torch.nn import functional

from normcore.data.folders import DataFolders
from normcore.data.patches import Patches
from normcore.menu.made_datasets import PatchesSpec
from normcore.records import Metrics
from normcore.spec import JobSpec
from normcore.train import train


def arrays(**knobs):
    return Patches(**knobs).arrays(DataFolders())


def test_images_are_bytes_of_equally_large_classes_and_the_same_for_a_seed():
    knobs = {"size": 16, "num_samples": 2100, "num_test": 30, "num_classes": 7}
    made, again, other = arrays(**knobs), arrays(**knobs), arrays(**knobs, data_seed=1)
    assert (made.train_inputs.shape, made.train_inputs.dtype) == ((2100, 3, 16, 16), np.uint8)
    assert set(np.bincount(made.train_labels)) == {300}
    np.testing.assert_array_equal(made.train_inputs, again.train_inputs)
    np.testing.assert_array_equal(made.test_inputs, again.test_inputs)
    assert (made.train_inputs != other.train_inputs).any()
    assert (made.train_inputs[:30] != made.test_inputs).any()


def test_no_two_classes_have_the_same_arrangement():
    arrangements = Patches(num_classes=256).arrangements()
    assert len({tuple(row) for row in arrangements.tolist()}) == 256
    assert set(arrangements.flatten().tolist()) == {0, 1, 2, 3}


def test_stripes_stand_at_the_orientation_of_their_class():
    made = arrays(num_samples=400, num_test=1, num_classes=5, noise=0.0)
    # The gradient of stripes points across them; at twice its angle, opposite directions are one.
    corner = torch.from_numpy(made.train_inputs[:, 1, 1:11, 1:11]).double()
    down, right = (d[:, :9, :9] for d in (corner.diff(dim=1)[:, :, :9], corner.diff(dim=2)[:, :9]))
    twice = torch.atan2((2 * down * right).sum((1, 2)), (right**2 - down**2).sum((1, 2)))
    expected = Patches(num_classes=5).arrangements()[made.train_labels, 0] * torch.pi / 2
    # The clutter turns some of them.
    assert ((twice - expected).cos() > 0.7).double().mean() > 0.7


def test_a_linear_model_stays_low_and_a_small_vgg_learns_with_neither_at_the_ceiling():
    made = arrays(num_samples=6000, num_test=1000)
    x, t = (
        torch.from_numpy(images).flatten(1).double() / 255 - 0.5 for images in (made.train_inputs, made.test_inputs)
    )
    x, t = (functional.pad(images[:, ::3], (0, 1), value=1.0) for images in (x, t))
    targets = functional.one_hot(torch.from_numpy(made.train_labels)).double()
    weights = torch.linalg.solve(x.T @ x + 100 * torch.eye(x.shape[1], dtype=x.dtype), x.T @ targets)
    linear = ((t @ weights).argmax(1).numpy() == made.test_labels).mean()
    job = {"model": {"kind": "vgg", "width": 0.125}, "data": {"kind": "patches", "num_samples": 6000, "num_test": 1000}}
    spec = JobSpec.model_validate(job | {"batch_size": 64, "steps": 180, "evaluate_every": 180})
    points = [p for record in train(spec) if isinstance(record, Metrics) for p in record.points]
    (vgg,) = (p.value for p in points if p.key == "test/accuracy")
    assert 0.05 < linear < 0.25
    assert 0.5 < vgg < 0.995


def test_the_spec_says_what_is_made():
    spec = PatchesSpec(size=16, num_samples=20, num_test=5, num_classes=3, validation=0.25)
    made = spec.part()(**spec.knobs()).arrays(DataFolders())
    assert made.train_inputs.shape == (20, *spec.shape)
    assert (len(made.test_labels), spec.num_outputs, spec.num_train) == (5, made.train_labels.max() + 1, 15)
