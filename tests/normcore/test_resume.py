"""A training that was killed and resumed is, bit for bit, one that never was."""

import itertools

import pytest
import torch

from normcore.records import Checkpoint, Figure, Finished, Metrics, Reading, Remark, Snapshot
from normcore.spec import JobSpec
from normcore.train import train

CLOCKS = ("time/step_ms", "memory/peak_mib", "probe/overhead_fraction")

MLP = {
    "model": {"kind": "mlp", "hidden": [24, 16]},
    "data": {"kind": "digits", "size": 8, "crop_padding": 1},
    "norm": {"kind": "batch"},
    "noise": {"kind": "santurkar"},
    "optimizer": {"kind": "sgd", "lr": 0.2, "momentum": 0.9, "weight_decay": 1e-3},
    "schedule": {"kind": "cosine", "warmup_steps": 4},
    "probes": [{"kind": "landscape", "every": 3, "points": 3}],
    "batch_size": 480,
    "steps": 13,
    "evaluate_every": 4,
    "checkpoint_every": 5,
    "deterministic": True,
    "seed": 1,
}
VGG = MLP | {
    "model": {"kind": "vgg", "width": 0.0625},
    "data": {"kind": "digits", "size": 32, "crop_padding": 2},
    "batch_size": 8,
    "steps": 5,
    "checkpoint_every": 2,
}


def through_the_wire(snapshot):
    """What another process would read: the values and nothing of the tensors' layout or identity."""
    tensors = {name: torch.tensor(tensor.tolist(), dtype=tensor.dtype) for name, tensor in snapshot.tensors.items()}
    return Snapshot(snapshot.step, tensors, dict(snapshot.facts))


def killed_after(records, step):
    """The records until the first of a later step: what was told before the process died."""
    told = list(itertools.takewhile(lambda record: isinstance(record, Figure) or record.step <= step, records))
    records.close()
    return told


def comparable(records):
    for record in records:
        if isinstance(record, Metrics):
            yield from (point for point in record.points if point.key not in CLOCKS)
        elif isinstance(record, Checkpoint):
            snapshot = record.snapshot
            bits = {name: (tensor.dtype, tensor.numpy().tobytes()) for name, tensor in snapshot.tensors.items()}
            yield record.step, record.last, record.best, snapshot.facts, bits
        elif not isinstance(record, Remark):
            yield record


def of_later_steps(told, step):
    return [item for item in told if isinstance(item, Figure) or (item[0] if type(item) is tuple else item.step) > step]


def without_figures(records):
    """All records but the figures and what follows them, which take longer than all the rest."""
    told = list(itertools.takewhile(lambda record: not isinstance(record, Figure), records))
    records.close()
    return told


def assert_goes_on_like(whole, spec, folders, resume):
    again = without_figures(train(spec, folders=folders, resume=resume))
    start = resume.step if resume else 0
    remarks = [record for record in again if isinstance(record, Remark) and record.code.startswith("resume")]
    assert [(remark.step, remark.code) for remark in remarks] == ([(start + 1, "resume_verified")] if resume else [])
    assert list(comparable(again)) == [item for item in comparable(whole) if step_of(item) > start]
    assert again[-1].last


def step_of(item):
    return item[0] if type(item) is tuple else item.step


@pytest.fixture(scope="module")
def mlp(folders):
    spec = JobSpec.model_validate(MLP)
    return spec, without_figures(train(spec, folders=folders))


@pytest.fixture(scope="module")
def vgg(folders):
    spec = JobSpec.model_validate(VGG)
    return spec, without_figures(train(spec, folders=folders))


def killed_and_resumed(training, folders, step):
    spec, whole = training
    told = killed_after(train(spec, folders=folders), step)
    checkpoints = [record.snapshot for record in told if isinstance(record, Checkpoint)]
    assert_goes_on_like(whole, spec, folders, through_the_wire(checkpoints[-1]) if checkpoints else None)


@pytest.mark.parametrize("step", range(1, 13))
def test_an_mlp_killed_at_any_step_goes_on_from_its_newest_checkpoint(mlp, folders, step):
    killed_and_resumed(mlp, folders, step)


@pytest.mark.parametrize("step", [1, 2, 4])
def test_a_vgg_killed_at_any_step_goes_on_from_its_newest_checkpoint(vgg, folders, step):
    killed_and_resumed(vgg, folders, step)


def stopped_and_resumed(training, folders, step):
    spec, whole = training
    asked = itertools.count(1)
    *_, checkpoint, _ = train(spec, folders=folders, stop=lambda: next(asked) == step)
    assert checkpoint.step == step
    assert_goes_on_like(whole, spec, folders, through_the_wire(checkpoint.snapshot))


@pytest.mark.parametrize("step", [1, 4, 6, 12])
def test_an_mlp_stopped_at_any_step_goes_on_from_there(mlp, folders, step):
    stopped_and_resumed(mlp, folders, step)


def test_a_vgg_stopped_between_checkpoints_goes_on_from_there(vgg, folders):
    stopped_and_resumed(vgg, folders, 3)


@pytest.mark.parametrize("precision", ["float64", "bfloat16"])
@pytest.mark.parametrize("optimizer", [{"kind": "adamw"}, {"kind": "sgd", "momentum": 0.5, "nesterov": True}])
def test_every_precision_and_optimizer_resumes(folders, precision, optimizer):
    spec = JobSpec.model_validate(MLP | {"precision": precision, "optimizer": optimizer})
    whole = without_figures(train(spec, folders=folders))
    middle = next(record.snapshot for record in whole if isinstance(record, Checkpoint))
    assert_goes_on_like(whole, spec, folders, through_the_wire(middle))


KNOBS = [
    {"precision": "float16", "ema": 0.9, "accumulation": 3},
    {"precision": "bfloat16", "accumulation": 2, "optimizer": {"kind": "adamw", "clip_norm": 0.5}},
    {"precision": "float16", "ema": 0.5, "optimizer": {"kind": "muon", "clip_norm": 0.1, "adaptive_clipping": 0.1}},
    {"label_smoothing": 0.1, "ema": 0.99, "norm": {"kind": "batch", "estimator": "population"}},
]


@pytest.mark.parametrize("knobs", KNOBS, ids="-".join)
def test_knobs_together_resume_bit_for_bit(folders, knobs):
    spec = JobSpec.model_validate(MLP | knobs)
    whole = without_figures(train(spec, folders=folders))
    middle = next(record.snapshot for record in whole if isinstance(record, Checkpoint))
    assert any(name.startswith("learner.ema.") for name in middle.tensors) == ("ema" in knobs)
    assert_goes_on_like(whole, spec, folders, through_the_wire(middle))


def test_resumed_from_the_last_checkpoint_only_the_end_is_told(mlp, folders):
    spec, whole = mlp
    again = list(train(spec, folders=folders, resume=through_the_wire(whole[-1].snapshot)))
    assert [type(record) for record in again] == [Figure, Finished]


def test_the_figure_after_a_resume_shows_the_readings_before_it(folders):
    spec = JobSpec.model_validate(MLP)
    whole = list(train(spec, folders=folders))
    middle = [record.snapshot for record in whole if isinstance(record, Checkpoint)][-2]
    assert middle.tensors["readings.landscape.step"].tolist() == [3, 6, 9]
    again = list(train(spec, folders=folders, resume=through_the_wire(middle)))
    figures = [[record.png for record in records if isinstance(record, Figure)] for records in (whole, again)]
    assert figures[0] == figures[1] != []


def test_a_longer_training_may_go_on_from_a_shorter_one(folders):
    changes = {"schedule": {"kind": "constant"}, "probes": []}
    *_, checkpoint, _ = train(JobSpec.model_validate(MLP | changes), folders=folders)
    spec = JobSpec.model_validate(MLP | changes | {"steps": 20})
    whole = list(train(spec, folders=folders))
    longer = list(train(spec, folders=folders, resume=checkpoint.snapshot))
    assert list(comparable(longer)) == [item for item in comparable(whole) if step_of(item) > 13]


def test_a_snapshot_of_a_later_step_than_the_last_is_refused(mlp, folders):
    spec, whole = mlp
    with pytest.raises(ValueError, match=r"at most 3 steps.*got one of step 13; raise the job's steps"):
        train(spec.model_copy(update={"steps": 3}), folders=folders, resume=whole[-1].snapshot)


def test_readings_that_were_not_finite_survive_too(folders):
    probe = {"kind": "landscape", "every": 2, "low": 1.0, "high": 1e30, "points": 3}
    spec = JobSpec.model_validate(MLP | {"probes": [probe], "norm": {"kind": "none"}})
    whole = without_figures(train(spec, folders=folders))
    readings = [record for record in whole if isinstance(record, Reading)]
    assert any("nonfinite_points" in reading.scalars for reading in readings)
    middle = [record.snapshot for record in whole if isinstance(record, Checkpoint)][-2]
    again = without_figures(train(spec, folders=folders, resume=through_the_wire(middle)))
    ours, theirs = again[-1].snapshot.tensors, whole[-1].snapshot.tensors
    assert ours.keys() == theirs.keys()
    assert all(ours[name].numpy().tobytes() == theirs[name].numpy().tobytes() for name in ours)
