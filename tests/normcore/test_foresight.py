"""The loss that a snapshot foretells, and what a resumed training says of it."""

import itertools

import pytest
import torch

from normcore.foresight import NEXT_LOSS, next_loss, verify
from normcore.learner import Learner
from normcore.records import Checkpoint, Metrics, Remark, Snapshot
from normcore.spec import JobSpec
from normcore.train import train

SPEC = {
    "model": {"kind": "mlp", "hidden": [8]},
    "data": {"kind": "digits", "size": 8},
    "norm": {"kind": "batch_renorm", "warmup_steps": 1, "r_steps": 3, "d_steps": 2},
    "noise": {"kind": "santurkar"},
    "batch_size": 16,
    "steps": 6,
    "checkpoint_every": 3,
    "deterministic": True,
}


def learner_of(folders, **changes):
    return Learner(JobSpec.model_validate(SPEC | changes), torch.device("cpu"), folders)


def middle_and_rest(folders, **changes):
    records = list(train(JobSpec.model_validate(SPEC | changes), folders=folders))
    return next(record.snapshot for record in records if isinstance(record, Checkpoint)), records


def remarks_of(records):
    return [record for record in records if isinstance(record, Remark)]


def test_it_is_the_loss_of_the_next_step_and_leaves_no_trace(folders):
    learner, twin = learner_of(folders), learner_of(folders)
    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    generator = torch.get_rng_state()
    foretold = next_loss(learner, 1)
    assert all(torch.equal(value, before[name]) for name, value in learner.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(parameter.grad is None for parameter in learner.model.parameters())
    assert torch.equal(foretold, twin.forward(1)[0].detach())


@pytest.mark.parametrize("norm", [{"kind": "batch"}, SPEC["norm"], {"kind": "power", "warmup_steps": 1}])
def test_foretelling_changes_no_bit_of_the_training(folders, norm, monkeypatch):
    changes = {"norm": norm}
    _, whole = middle_and_rest(folders, **changes)
    monkeypatch.setattr("normcore.snapshot.next_loss", lambda *_: torch.zeros(()))
    _, without = middle_and_rest(folders, **changes)
    ours, theirs = (
        {name: tensor.numpy().tobytes() for name, tensor in records[-2].snapshot.tensors.items() if name != NEXT_LOSS}
        for records in (whole, without)
    )
    assert ours == theirs


def test_it_is_the_loss_that_was_recorded_afterwards(folders):
    middle, records = middle_and_rest(folders)
    points = itertools.chain.from_iterable(record.points for record in records if isinstance(record, Metrics))
    (recorded,) = [point.value for point in points if (point.key, point.step) == ("train/loss", 4)]
    assert middle.tensors[NEXT_LOSS].item() == recorded


def test_a_training_that_is_not_deterministic_foretells_and_remarks_nothing(folders):
    spec = JobSpec.model_validate(SPEC | {"deterministic": False})
    middle, _ = middle_and_rest(folders, deterministic=False)
    assert NEXT_LOSS not in middle.tensors
    assert remarks_of(train(spec, folders=folders, resume=middle)) == []


def test_a_resumed_training_that_goes_another_way_says_so_with_both_values(folders):
    middle, _ = middle_and_rest(folders)
    name = "model.classifier.weight"
    bent = middle.tensors[name] + 0.01 * torch.arange(10)[:, None]
    altered = Snapshot(middle.step, {**middle.tensors, name: bent}, middle.facts)
    (remark,) = remarks_of(train(JobSpec.model_validate(SPEC), folders=folders, resume=altered))
    foretold = middle.tensors[NEXT_LOSS].item()
    assert (remark.step, remark.code) == (4, "resume_differs")
    assert f"foretold, {foretold:.9g} ({foretold.hex()}), got " in remark.detail


def test_one_bit_is_a_difference():
    loss = torch.tensor(0.5)
    snapshot = Snapshot(7, {NEXT_LOSS: loss})
    assert verify(snapshot, loss.clone()).code == "resume_verified"
    assert verify(snapshot, torch.nextafter(loss, torch.tensor(1.0))).code == "resume_differs"
    assert verify(snapshot, loss.double()).code == "resume_differs"
    assert verify(Snapshot(7, {}), loss) is None
