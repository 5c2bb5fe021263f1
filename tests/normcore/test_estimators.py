"""Jobs that evaluate with other statistics than moving averages."""

import pytest
import torch

from normcore.evaluation import evaluate
from normcore.learner import Learner
from normcore.noise.noise import start_step
from normcore.records import Checkpoint, Metrics, Reading
from normcore.spec import JobSpec
from normcore.step_evaluation import ESTIMATE_BATCHES
from normcore.train import train

SPEC = {
    "model": {"kind": "mlp", "hidden": [24, 16]},
    "data": {"kind": "digits", "size": 8},
    "noise": {"kind": "santurkar"},
    "batch_size": 100,
    "steps": 12,
    "evaluate_every": 5,
    "checkpoint_every": 4,
    "deterministic": True,
}
CLOCKS = ("time/step_ms", "memory/peak_mib", "probe/overhead_fraction")

each_estimator = pytest.mark.parametrize("estimator", ["paper", "population"])


def spec_of(estimator, **changes):
    return JobSpec.model_validate(SPEC | {"norm": {"kind": "batch", "estimator": estimator}} | changes)


def run(estimator, folders, resume=None, stop=None, **changes):
    return list(train(spec_of(estimator, **changes), folders=folders, resume=resume, stop=stop))


def points_of(records):
    points = [point for record in records if isinstance(record, Metrics) for point in record.points]
    return [point for point in points if point.key not in CLOCKS]


def checkpoints_of(records):
    return {record.step: record.snapshot for record in records if isinstance(record, Checkpoint)}


def gathered(snapshot, spec, folders, estimator):
    """A model with the weights of a checkpoint, and in its layers what a pass over the training set says, by hand."""
    learner = Learner(spec, torch.device("cpu"), folders)
    state = {name.removeprefix("model."): t for name, t in snapshot.tensors.items() if name.startswith("model.")}
    learner.model.load_state_dict(state)
    model = learner.model
    for step in range(min(learner.data.steps_per_epoch, ESTIMATE_BATCHES)):
        start_step(model, spec.seed, step)
        if step == 0:
            for block in model.blocks:
                block.norm.reset_statistics()
        with torch.no_grad():
            learner.infer(learner.data.batch(step))
    return learner


@each_estimator
def test_evaluations_and_checkpoints_have_the_statistics_of_a_pass_over_the_training_set(folders, estimator):
    records = run(estimator, folders)
    learner = gathered(checkpoints_of(records)[12], spec_of(estimator), folders, estimator)
    told = {point.key: point.value for point in points_of(records)}
    found = evaluate(learner, learner.data.test_batches())
    assert told["test/loss"] == pytest.approx(found.loss, rel=1e-4)
    assert told["test/accuracy"] == found.accuracy
    kept = checkpoints_of(records)[12].tensors
    for name, value in learner.model.named_buffers():
        if "running" in name:
            torch.testing.assert_close(kept[f"model.{name}"], value, rtol=1e-4, atol=1e-5)
    moving = {point.key: point.value for point in points_of(run("ema", folders))}
    assert abs(moving["test/loss"] - told["test/loss"]) > 1e-3


@each_estimator
def test_the_training_itself_is_that_with_moving_averages_bit_for_bit(folders, estimator):
    moving, ours = run("ema", folders), run(estimator, folders)
    curves = [[p for p in points_of(records) if p.key.startswith("train/")] for records in (moving, ours)]
    assert curves[0] == curves[1]
    for step, snapshot in checkpoints_of(ours).items():
        for name, tensor in checkpoints_of(moving)[step].tensors.items():
            assert "running_" in name or torch.equal(tensor, snapshot.tensors[name]), name


@pytest.mark.parametrize("estimator", ["ema", "paper", "population"])
def test_it_does_not_matter_when_and_how_often_somebody_looks(folders, estimator):
    """Nor is it felt in what comes later that a training was stopped and resumed."""
    probes = [{"kind": "train_eval_gap", "every": 3}]
    plain = run(estimator, folders)
    often = run(estimator, folders, evaluate_every=1, probes=probes)
    asked = iter(range(1, 100))
    *_, stopped, _ = run(estimator, folders, stop=lambda: next(asked) == 6, probes=probes)
    resumed = run(estimator, folders, resume=stopped.snapshot, probes=probes)
    last = [checkpoints_of(records)[12].tensors for records in (plain, often, resumed)]
    for name, tensor in last[0].items():
        assert torch.equal(tensor, last[1][name]), name
        assert torch.equal(tensor, last[2][name]), name
    readings = [[r for r in records if isinstance(r, Reading) and r.step > 6] for records in (often, resumed)]
    assert readings[0] == readings[1] != []
    told = set(points_of(often))
    assert {point for point in points_of(plain) if point.key.startswith("test/")} <= told
    assert set(points_of(resumed)) - told == set()
