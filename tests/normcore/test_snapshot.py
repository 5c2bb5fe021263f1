"""What a snapshot holds, and that it is put back as it was."""

import json
import math

import pytest
import torch

from normcore.learner import Learner
from normcore.records import Reading, Snapshot
from normcore.snapshot import Past, restore, take
from normcore.spec import JobSpec

VGG = {"model": {"kind": "vgg", "width": 0.0625}, "data": {"kind": "digits"}, "batch_size": 8}


def learner_of(folders, **changes):
    spec = JobSpec.model_validate(VGG | changes)
    return spec, Learner(spec, torch.device("cpu"), folders)


def step(learner, number=1):
    loss, _, _ = learner.forward(number)
    learner.backward(loss)
    learner.update(loss, 0.1)


def test_tensors_are_copies_in_plain_memory_order(folders):
    spec, learner = learner_of(folders, optimizer={"kind": "sgd", "momentum": 0.9})
    step(learner)
    snapshot = take(spec, 1, learner, Past())
    weight = learner.model.blocks[1].conv.weight
    assert not weight.is_contiguous()
    assert all(tensor.is_contiguous() and tensor.device.type == "cpu" for tensor in snapshot.tensors.values())
    before = {name: tensor.clone() for name, tensor in snapshot.tensors.items()}
    step(learner, 2)
    assert all(torch.equal(before[name], tensor) for name, tensor in snapshot.tensors.items())
    assert not torch.equal(weight, before["model.blocks.1.conv.weight"])


@pytest.mark.parametrize(
    ("optimizer", "states"),
    [
        ({"kind": "sgd"}, set()),
        ({"kind": "sgd", "momentum": 0.9}, {"momentum_buffer"}),
        ({"kind": "adamw"}, {"step", "exp_avg", "exp_avg_sq"}),
    ],
)
def test_names_say_what_a_tensor_is(folders, optimizer, states):
    spec, learner = learner_of(folders, optimizer=optimizer)
    step(learner)
    names = set(take(spec, 1, learner, Past()).tensors)
    parameters = [name for name, _ in learner.model.named_parameters()]
    assert names == (
        {f"model.{name}" for name in learner.model.state_dict()}
        | {f"optimizer.{name}.{state}" for name in parameters for state in states}
        | {"rng.cpu"}
        | {f"learner.{name}" for name in learner.state()}
    )


def test_facts_are_plain_json_and_hold_the_spec(folders):
    spec, learner = learner_of(folders, seed=2**63 - 1)
    facts = take(spec, 0, learner, Past()).facts
    assert JobSpec.model_validate(json.loads(json.dumps(facts, allow_nan=False))["spec"]) == spec


def test_restored_momentum_has_the_memory_format_of_its_parameter(folders):
    spec, learner = learner_of(folders, optimizer={"kind": "sgd", "momentum": 0.9})
    step(learner)
    snapshot = take(spec, 1, learner, Past())
    _, fresh = learner_of(folders, optimizer={"kind": "sgd", "momentum": 0.9})
    assert restore(snapshot, spec, fresh) == Past()
    for parameter in fresh.model.parameters():
        assert fresh.optimizer.state[parameter]["momentum_buffer"].stride() == parameter.stride()


def test_readings_come_back_as_they_were(folders):
    spec, learner = learner_of(folders)
    readings = [
        Reading("landscape", 2, {"loss_min": 0.1}, {"loss": (0.1, math.inf), "step_sizes": (1.0, 2.0)}),
        Reading("other", 2, {}, {"x": (1.0,)}),
        Reading(
            "landscape", 4, {"loss_min": 0.3, "effective_beta": 7.0}, {"loss": (0.3, 1.5), "step_sizes": (1.0, 2.0)}
        ),
    ]
    snapshot = take(spec, 4, learner, Past(readings))
    assert restore(snapshot, spec, learner).readings == readings


def test_the_global_generator_goes_on_where_it_was(folders):
    spec, learner = learner_of(folders)
    snapshot = take(spec, 0, learner, Past())
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(snapshot.tensors["rng.cpu"])
        expected = torch.rand(3)
        torch.rand(100)
        restore(snapshot, spec, learner)
        assert torch.equal(torch.rand(3), expected)


def test_a_snapshot_of_another_model_is_refused(folders):
    spec, learner = learner_of(folders)
    snapshot = take(spec, 0, learner, Past())
    _, wide = learner_of(folders, model={"kind": "vgg", "width": 0.125})
    with pytest.raises(
        ValueError, match=r"blocks\.0\.conv\.bias with shape \(4,\) in the snapshot and \(8,\) in the mod"
    ):
        restore(snapshot, spec, wide)
    _, bare = learner_of(folders, norm={"kind": "none"})
    with pytest.raises(ValueError, match=r"blocks\.0\.norm\.bias .* and missing in the model; resume with the spec"):
        restore(snapshot, spec, bare)
    torn = Snapshot(
        0,
        {name: tensor for name, tensor in snapshot.tensors.items() if "classifier" not in name},
        snapshot.facts,
    )
    with pytest.raises(ValueError, match=r"classifier\.bias with shape missing in the snapshot"):
        restore(torn, spec, learner)


def test_a_snapshot_of_another_training_is_refused(folders):
    spec, learner = learner_of(folders)
    snapshot = take(spec, 0, learner, Past())
    other = spec.model_copy(update={"seed": spec.seed + 1})
    with pytest.raises(ValueError, match=rf"got seed {spec.seed} in the snapshot and {spec.seed + 1} in the spec"):
        restore(snapshot, other, learner)
    longer = spec.model_copy(update={"steps": 10_000, "labels": {"why": "longer"}})
    assert restore(snapshot, longer, learner) == Past()


def test_a_snapshot_from_before_a_knob_is_one_with_its_default(folders):
    spec, learner = learner_of(folders)
    step(learner)
    snapshot = take(spec, 1, learner, Past())
    later = {"accumulation", "label_smoothing", "ema", "compile", "devices", "batch_size_per_device"}
    old = {name: value for name, value in snapshot.facts["spec"].items() if name not in later}
    old["norm"] = {name: value for name, value in old["norm"].items() if name != "estimator"}
    old["optimizer"] = {name: value for name, value in old["optimizer"].items() if name != "clip_norm"}
    tensors = {name: tensor for name, tensor in snapshot.tensors.items() if not name.startswith("learner.")}
    earlier = Snapshot(1, tensors, snapshot.facts | {"spec": old})
    _, fresh = learner_of(folders)
    restore(earlier, spec, fresh)
    assert torch.equal(fresh.forward(2)[0], learner.forward(2)[0])
    changed, other = learner_of(folders, accumulation=2)
    with pytest.raises(ValueError, match="got accumulation 1 in the snapshot and 2 in the spec"):
        restore(earlier, changed, other)


def test_a_snapshot_of_parts_that_are_no_more_is_compared_as_it_stands(folders):
    spec, learner = learner_of(folders)
    snapshot = take(spec, 1, learner, Past())
    facts = snapshot.facts | {"spec": snapshot.facts["spec"] | {"norm": {"kind": "of yore"}}}
    with pytest.raises(ValueError, match=r"got norm .*of yore.* in the snapshot"):
        restore(Snapshot(1, snapshot.tensors, facts), spec, learner)
