"""A training in two processes against the same training in one."""

import os
import signal
import subprocess
import time

import pytest
import torch
from torch import distributed

from normcore.companions import RankLost
from normcore.learner import Learner
from normcore.norms.ghost import GhostBatchNorm
from normcore.records import Checkpoint, Metrics, Reading, Remark, Stopped
from normcore.spec import JobSpec
from normcore.train import train

JOB = {
    "model": {"kind": "mlp", "hidden": [12, 8]},
    "data": {"kind": "digits", "size": 8, "crop_padding": 1},
    "optimizer": {"kind": "sgd", "lr": 0.1, "momentum": 0.9},
    "batch_size": 16,
    "steps": 5,
    "checkpoint_every": 2,
    "evaluate_every": 2,
    "precision": "float64",
    "deterministic": True,
    "seed": 3,
}


def job(**changes):
    return JobSpec.model_validate(JOB | changes)


def snapshots(records):
    return {record.step: record.snapshot.tensors for record in records if isinstance(record, Checkpoint)}


def points(records):
    told = (point for record in records if isinstance(record, Metrics) for point in record.points)
    clocks = ("time", "memory", "probe/overhead")
    return {(point.key, point.step): point.value for point in told if not point.key.startswith(clocks)}


def of_the_model(tensors, *, statistics=True):
    kept = ("running_mean", "running_var") if not statistics else ()
    return {name: t for name, t in tensors.items() if name.startswith("model.") and not name.endswith(kept or "\0")}


@pytest.fixture(scope="module")
def synchronized():
    """Two processes, with `sync`, momentum, augmentation and probes."""
    probes = [
        {"kind": "landscape", "every": 2, "points": 2},
        {"kind": "covariate_shift", "every": 2},
        {"kind": "curvature", "every": 2, "iterations": 4},
        {"kind": "lr_range", "steps": 10, "high": 1.0},
        {"kind": "plane", "every": 1, "points": 3, "directions": "trajectory"},
        {"kind": "interpolation", "points": 3, "bn_mode": "frozen"},
    ]
    spec = job(norm={"kind": "sync"}, devices=2, probes=probes)
    return spec, list(train(spec))


def test_two_processes_with_sync_are_one_with_the_same_batch(synchronized):
    spec, two = synchronized
    one = list(train(job(norm={"kind": "sync"}, probes=[probe.model_dump() for probe in spec.probes])))
    assert [type(record) for record in two] == [type(record) for record in one]
    assert snapshots(one).keys() == {2, 4, 5}
    for step, tensors in snapshots(one).items():
        theirs = snapshots(two)[step]
        torch.testing.assert_close(of_the_model(theirs), of_the_model(tensors), rtol=0, atol=1e-10)
    assert points(two) == pytest.approx(points(one), rel=1e-9, abs=1e-12)
    assert {key for key, _ in points(two)} >= {"train/loss", "train/accuracy", "test/accuracy", "landscape/loss_max"}
    readings = [[record.arrays for record in records if isinstance(record, Reading)] for records in (one, two)]
    assert len(readings[0]) == 3 * 2 + 3
    for ours, theirs in zip(*readings, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert theirs[name] == pytest.approx(ours[name], rel=1e-9, abs=1e-12, nan_ok=True)


def test_what_a_probe_computes_as_another_function_is_that_of_the_whole_batch_too():
    """Frozen and in float64, inside a training in float32: a plain loss of each device's rows, averaged."""
    probe = {"kind": "landscape", "every": 2, "points": 2, "bn_mode": "frozen", "precision": "float64"}
    changes = {"probes": [probe], "steps": 2, "precision": "float32", "norm": {"kind": "sync"}}
    one, two = (
        [record for record in train(job(devices=devices, **changes)) if isinstance(record, Reading | Remark)]
        for devices in (1, 2)
    )
    assert [type(record) for record in one] == [type(record) for record in two] == [Reading]
    for name, values in one[0].arrays.items():
        # Float32 weights, which the devices' sums left a last bit apart.
        assert two[0].arrays[name] == pytest.approx(values, rel=1e-4)


def test_a_resumed_training_over_two_processes_has_the_same_bits(synchronized):
    spec, records = synchronized
    middle = next(record.snapshot for record in records if isinstance(record, Checkpoint) and record.step == 2)
    rest = list(train(spec, resume=middle))
    ours, theirs = snapshots(rest)[5], snapshots(records)[5]
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.numpy().tobytes() == theirs[name].numpy().tobytes(), name
    assert "resume_verified" in {record.code for record in rest if isinstance(record, Remark)}


def test_a_snapshot_is_resumed_over_as_many_devices_only(synchronized):
    spec, records = synchronized
    snapshot = next(record.snapshot for record in records if isinstance(record, Checkpoint))
    other = spec.model_copy(update={"devices": 1, "batch_size_per_device": 16})
    with pytest.raises(ValueError, match=r"got (devices|batch_size_per_device) .* in the snapshot"):
        list(train(other, resume=snapshot))


def follow_halves(model, steps):
    """Give virtual batches of half the batch the running statistics of the first of two devices."""

    def first_half(norm, inputs):
        if norm.training:
            half = inputs[0].detach()[: len(inputs[0]) // 2]
            means[norm].lerp_(half.mean(0), 0.1)
            variances[norm].lerp_(half.var(0), 0.1)

    norms = [module for module in model.modules() if isinstance(module, GhostBatchNorm)]
    means = {norm: torch.zeros(norm.num_features, dtype=torch.float64) for norm in norms}
    variances = {norm: torch.ones(norm.num_features, dtype=torch.float64) for norm in norms}
    handles = [norm.register_forward_pre_hook(first_half) for norm in norms]
    yield from steps
    for handle in handles:
        handle.remove()
    for norm in norms:
        norm.running_mean.copy_(means[norm])
        norm.running_var.copy_(variances[norm])


def test_two_processes_with_batch_norm_are_ghosts_and_keep_the_statistics_of_the_first():
    """The devices' batches are virtual batches; running statistics follow those of the first device alone."""
    two = list(train(job(norm={"kind": "batch"}, devices=2)))
    assert [(r.step, r.code) for r in two if isinstance(r, Remark)] == [(0, "statistics-of-one-device")]
    ghosts = job(norm={"kind": "ghost", "virtual_batch_size": 8})
    learner = Learner(ghosts, torch.device("cpu"))
    learner.begin()
    for step in follow_halves(learner.model, range(1, 6)):
        loss, _, _ = learner.forward(step)
        learner.backward(loss)
        learner.update(loss, 0.1)
        assert points(two)["train/loss", step] == pytest.approx(loss.item(), rel=1e-9)
    ours = {name.removeprefix("model."): value for name, value in of_the_model(snapshots(two)[5]).items()}
    torch.testing.assert_close(ours, dict(learner.model.state_dict()), rtol=0, atol=1e-10)
    whole = snapshots(train(job(norm={"kind": "batch"})))[5]
    assert (whole["model.classifier.weight"] - snapshots(two)[5]["model.classifier.weight"]).abs().max() > 1e-4


def processes():
    """The processes that this one started."""
    command = ["ps", "-o", "pid=,args=", "--ppid", str(os.getpid())]
    commands = subprocess.run(command, capture_output=True, text=True, check=False)
    return [int(line.split()[0]) for line in commands.stdout.splitlines() if "normcore.companions" in line]


def test_a_killed_rank_ends_the_training_and_a_stop_ends_all():
    endless = job(steps=1_000_000, evaluate_every=1_000_000, checkpoint_every=1_000_000, devices=2)
    records = train(endless)
    next(records)
    (companion,) = processes()
    os.kill(companion, signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(RankLost, match="every rank must live as long as the training, got SIGKILL in rank 1 of 2"):
        list(records)
    assert time.monotonic() - began < 20
    assert not processes()
    assert not distributed.is_initialized()

    asked = iter([False, False, True])
    told = list(train(endless, stop=lambda: next(asked)))
    assert [record.step for record in told if isinstance(record, Checkpoint | Stopped)] == [3, 3]
    assert isinstance(told[-1], Stopped)
    assert not processes()
