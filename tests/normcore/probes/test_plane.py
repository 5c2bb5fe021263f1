"""The picture of the loss over two directions, on quadratics, and in trainings that are resumed."""

import math

import pytest
import torch
from torch import nn

from normcore.learner import Learner
from normcore.probes.directions import filter_normalized
from normcore.probes.look import look
from normcore.probes.plane import PlaneProbe
from normcore.probes.plane_figure import draw
from normcore.probes.sheet import DARK
from normcore.records import Checkpoint, Reading, Remark
from normcore.seeds import generator
from normcore.spec import JobSpec
from normcore.train import train

MLP = {
    "model": {"kind": "mlp", "hidden": [8], "dropout": 0.25},
    "data": {"kind": "digits", "size": 8, "crop_padding": 1},
    "norm": {"kind": "batch"},
    "noise": {"kind": "santurkar"},
    "optimizer": {"kind": "sgd", "lr": 0.1, "momentum": 0.9},
    "batch_size": 16,
    "steps": 12,
    "checkpoint_every": 1,
    "deterministic": True,
}
PLANE = {"kind": "plane", "every": 1, "points": 3, "keep": 4, "directions": "trajectory"}


class Bowl(nn.Module):
    """0.5 theta^T H theta, of a matrix of one row."""

    def __init__(self, size=5):
        super().__init__()
        draw = torch.Generator().manual_seed(3)
        root = torch.randn(size, size, generator=draw, dtype=torch.float64)
        self.hessian = root @ root.T
        self.theta = nn.Parameter(torch.randn(1, size, generator=draw, dtype=torch.float64))

    def forward(self):
        return self.at(self.theta.flatten())

    def at(self, theta):
        return 0.5 * theta @ self.hessian @ theta


def walk(probe, model, steps):
    """Let a probe watch a model at some weights, and see it back where it was."""
    end = model.theta.detach().clone()
    for step, weights in enumerate(steps, start=1):
        with torch.no_grad():
            model.theta.copy_(weights[None])
        probe.watch(step, model)
    with torch.no_grad():
        model.theta.copy_(end)
    return end.flatten()


def test_on_a_quadratic_the_surface_over_the_path_is_the_quadratic_form():
    model, probe = Bowl(), PlaneProbe(directions="trajectory", points=5, keep=4)
    u, v = torch.linalg.qr(torch.randn(5, 2, generator=torch.Generator().manual_seed(1)).double()).Q.T
    theta = model.theta.detach().flatten().clone()
    walk(probe, model, [theta + 4 * u + 0.5 * v, theta + 3 * u - 0.5 * v, theta + 2 * u + 0.5 * v])
    reading = look(probe, model, model, lr=0.1, step=7)
    arrays = reading.arrays
    difference = torch.stack(probe._kept.vectors) - theta
    _, _, right = torch.linalg.svd(difference, full_matrices=False)
    signs = [(difference @ d)[(difference @ d).abs().argmax()].sign() for d in right[:2]]
    d_x, d_y = signs[0] * right[0], signs[1] * right[1]
    expected = [model.at(theta + x * d_x + y * d_y).item() for y in arrays["y"] for x in arrays["x"]]
    assert arrays["loss"] == pytest.approx(expected, rel=1e-9)
    assert reading.scalars["explained"] == pytest.approx(1, abs=1e-12)
    assert reading.scalars["loss_end"] == pytest.approx(model.at(theta).item(), rel=1e-12)
    assert (reading.scalars["loss_min"], reading.scalars["loss_max"]) == (min(arrays["loss"]), max(arrays["loss"]))
    # The path stands where its losses are those of the kept weights, on a grid that is wider by a fifth on each side.
    for row, (x, y) in enumerate(zip(arrays["path_x"][:3], arrays["path_y"][:3], strict=True)):
        assert model.at(theta + x * d_x + y * d_y).item() == pytest.approx(model.at(probe._kept.vectors[row]).item())
    low, high = min(0, *arrays["path_x"][:3]), max(arrays["path_x"][:3])
    assert arrays["x"][0] == pytest.approx(low - 0.2 * (high - low))
    assert arrays["x"][-1] == pytest.approx(high + 0.2 * (high - low))
    assert arrays["path_step"][:3] == (1, 2, 3)
    assert math.isnan(arrays["path_step"][3])


def test_over_random_directions_it_is_the_quadratic_form_too():
    model, probe = Bowl(), PlaneProbe(points=5, reach=2.0)
    reading = look(probe, model, model, lr=0.1, step=7, seed=4)
    theta = model.theta.detach().flatten()
    d_x, d_y = (filter_normalized(model, generator("cpu", 4, "probe", "plane", axis, 7)) for axis in ("x", "y"))
    grid = (-2.0, -1.0, 0.0, 1.0, 2.0)
    assert reading.arrays["x"] == reading.arrays["y"] == grid
    expected = [model.at(theta + x * d_x + y * d_y).item() for y in grid for x in grid]
    assert reading.arrays["loss"] == pytest.approx(expected, rel=1e-9)
    assert d_x.norm().item() == pytest.approx(theta.norm().item())
    assert reading.facts == {"bn_mode": "batch", "directions": "random"}


def test_a_surface_that_blows_up_keeps_its_finite_losses():
    model = Bowl()

    def loss():
        value = model()
        return torch.where(value > 40, torch.nan, value)

    reading = look(PlaneProbe(points=5, reach=5.0), model, loss, lr=0.1)
    finite = [value for value in reading.arrays["loss"] if math.isfinite(value)]
    assert 0 < len(finite) < 25
    assert reading.scalars["loss_max"] == max(finite) <= 40
    assert "explained" not in reading.scalars
    assert draw({"": [reading]})[:8] == b"\x89PNG\r\n\x1a\n"


def test_it_leaves_the_model_and_the_generator_alone():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 1))
    x = torch.randn(8, 3)
    before, random = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    look(PlaneProbe(points=3), model, lambda: model(x).square().sum(), lr=0.1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training


def test_frozen_statistics_are_another_surface():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    x = torch.randn(8, 3)
    readings = {}
    for bn_mode in ("batch", "frozen"):
        readings[bn_mode] = look(PlaneProbe(points=3, bn_mode=bn_mode), model, lambda: model(x).square().sum(), lr=0.1)
        assert readings[bn_mode].facts["bn_mode"] == bn_mode
    model.eval()
    assert readings["frozen"].scalars["loss_end"] == pytest.approx(model(x).square().sum().item(), rel=1e-6)
    assert readings["batch"].scalars["loss_end"] != pytest.approx(readings["frozen"].scalars["loss_end"], rel=1e-3)


def records_of(folders, resume=None, **changes):
    return list(train(JobSpec.model_validate(MLP | {"probes": [PLANE]} | changes), folders=folders, resume=resume))


def reading_of(records):
    (reading,) = [record for record in records if isinstance(record, Reading)]
    return reading


def test_it_reads_the_last_batch_at_the_last_weights_and_the_weights_on_the_way(folders):
    records = records_of(folders, schedule={"kind": "constant"})
    reading = reading_of(records)
    snapshots = {record.step: record.snapshot.tensors for record in records if isinstance(record, Checkpoint)}
    learner = Learner(JobSpec.model_validate(MLP), torch.device("cpu"), folders)
    parameters = dict(learner.model.named_parameters())

    def at(step):
        return torch.cat([snapshots[step][f"model.{name}"].flatten().double() for name in parameters])

    learner.model.load_state_dict({name: snapshots[12][f"model.{name}"] for name in learner.model.state_dict()})
    assert reading.scalars["loss_end"] == learner.replay(12)().item()
    # Of 12 weights offered, room for 4: every fourth, from the first.
    steps = [int(step) for step in reading.arrays["path_step"] if math.isfinite(step)]
    assert steps == [1, 5, 9]
    distances = [(at(step) - at(12)).square().sum().item() for step in steps]
    seen = zip(reading.arrays["path_x"], reading.arrays["path_y"], strict=True)
    inside = sum(x**2 + y**2 for x, y in seen if math.isfinite(x))
    assert reading.scalars["explained"] == pytest.approx(inside / sum(distances), rel=1e-9)


@pytest.mark.parametrize("step", [3, 10])
def test_a_resumed_training_has_seen_the_same_path_bit_for_bit(folders, step):
    whole = records_of(folders)
    snapshot = next(record.snapshot for record in whole if isinstance(record, Checkpoint) and record.step == step)
    resumed = records_of(folders, resume=snapshot)
    assert repr(reading_of(resumed)) == repr(reading_of(whole))
    ours, theirs = ([r.snapshot.tensors for r in some if isinstance(r, Checkpoint)][-1] for some in (resumed, whole))
    watched = [name for name in theirs if name.startswith("watched.plane.")]
    assert len(watched) == 4
    assert all(torch.equal(ours[name], theirs[name]) for name in watched)


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "float16", "accumulation": 2, "ema": 0.5},
        {"precision": "bfloat16", "norm": {"kind": "none"}},
        {
            "model": {"kind": "transformer", "depth": 1, "width": 8, "heads": 2},
            "data": {"kind": "digits", "arrange": "tokens"},
            "norm": {"kind": "layer"},
        },
        {
            "model": {"kind": "lstm", "hidden": 4},
            "data": {"kind": "digits", "arrange": "rows", "size": 8},
            "norm": {"kind": "batch"},
        },
        {
            "model": {"kind": "deep_linear", "depth": 2, "width": 4},
            "data": {"kind": "gaussian", "size": 4, "num_samples": 64},
            "optimizer": {"kind": "sgd", "lr": 1e-4},
            "precision": "float64",
        },
    ],
    ids=["float16 in micro-batches", "bfloat16 without a norm", "transformer", "lstm", "deep linear"],
)
def test_it_reads_whatever_trains(folders, changes):
    probe = PLANE | {"bn_mode": "frozen"}
    records = records_of(folders, steps=4, checkpoint_every=4, deterministic=False, probes=[probe], **changes)
    assert not [record for record in records if isinstance(record, Remark) and "probe" in record.code]
    reading = reading_of(records)
    assert math.isfinite(reading.scalars["loss_end"])
    assert 0 < reading.scalars["explained_x"] < reading.scalars["explained"] <= 1 + 1e-9
    assert len(reading.arrays["loss"]) == 9
    assert len(reading.arrays["path_x"]) == 4


def test_a_path_too_short_for_its_own_plane_is_a_remark(folders):
    records = records_of(folders, probes=[PLANE | {"every": 12}])
    (remark,) = [record for record in records if isinstance(record, Remark) and "probe" in record.code]
    assert "must span a plane with it, got 0 of them that do not; lower every" in remark.detail


def test_it_costs_its_forward_passes():
    assert PlaneProbe(points=11).cost(nn.Linear(1, 1)) == pytest.approx(0.36 * 122)


def test_the_figure_survives_whatever_was_read():
    model = Bowl()
    random, flat = (
        look(PlaneProbe(points=3), model, model, lr=0.1),
        look(PlaneProbe(points=3), model, _flat(model), lr=0),
    )
    nothing = look(PlaneProbe(points=3), model, lambda: model() * torch.nan, lr=0.1)
    for arms in ({"": []}, {"": [random]}, {"a": [random, random], "b": [flat], "c": [nothing]}, {"": [flat]}):
        assert draw(arms, DARK)[:8] == b"\x89PNG\r\n\x1a\n"


def _flat(model):
    return lambda: 0 * model.theta.sum() + 1
