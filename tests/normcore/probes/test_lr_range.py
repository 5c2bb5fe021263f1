"""The range of usable learning rates, against the closed form of gradient descent on a quadratic."""

import gc
import weakref
from math import inf, log10, nan

import pytest
import torch
from pydantic import ValidationError

from normcore.learner import Learner
from normcore.probes.look import look
from normcore.probes.lr_range import LrRangeProbe, running_median
from normcore.probes.lr_range_figure import draw
from normcore.probes.moment import Moment
from normcore.probes.sheet import DARK
from normcore.records import Figure, Metrics, Reading, Remark
from normcore.spec import JobSpec
from normcore.train import train

LINEAR = {
    "model": {"kind": "deep_linear", "depth": 1, "width": 4},
    "data": {"kind": "gaussian", "size": 4, "num_samples": 64},
    "norm": {"kind": "none"},
    "optimizer": {"kind": "sgd", "lr": 1e-4},
    "batch_size": 64,
    "precision": "float64",
    "steps": 2,
}
MLP = {
    "model": {"kind": "mlp", "hidden": [8], "dropout": 0.25},
    "data": {"kind": "digits", "size": 8, "crop_padding": 1},
    "norm": {"kind": "batch"},
    "noise": {"kind": "santurkar"},
    "optimizer": {"kind": "sgd", "lr": 0.1, "momentum": 0.9},
    "schedule": {"kind": "cosine"},
    "batch_size": 32,
    "steps": 4,
    "seed": 3,
}
SWEEP = {"kind": "lr_range", "steps": 40}


def read(spec, folders=None):
    (reading,) = [record for record in train(spec, folders=folders) if isinstance(record, Reading)]
    return reading


def closed_form(spec, rates):
    """Losses of least squares W x = A x on the whole set: along eigenvector i of 2 X^T X, with eigenvalue lambda_i, the
    error shrinks by 1 - lr lambda_i at each update, and the loss is the sum of lambda_i / 2 times its square.
    """
    learner = Learner(spec, torch.device("cpu"))
    batch = learner.data.batch(0)
    values, vectors = torch.linalg.eigh(2 * batch.inputs.T @ batch.inputs)
    target = torch.linalg.lstsq(batch.inputs, batch.labels).solution.T
    error = (learner.model.classifier.weight.detach() - target) @ vectors
    losses = []
    for lr in [0.0, *rates]:
        error = error * (1 - lr * values)
        losses.append((0.5 * values * error.square()).sum().item())
    return losses, values.max().item()


def test_on_least_squares_every_loss_is_the_closed_form():
    spec = JobSpec.model_validate(LINEAR | {"probes": [SWEEP | {"low": 0.1, "high": 1e3}]})
    reading = read(spec)
    rates = reading.arrays["lr"]
    assert rates == pytest.approx([1e-5 * 1e4 ** (k / 39) for k in range(40)], rel=1e-12)
    losses, _ = closed_form(spec, rates)
    assert reading.scalars["loss_initial"] == pytest.approx(losses[0], rel=1e-12)
    assert reading.arrays["loss"] == pytest.approx(losses[1:], rel=1e-7)


@pytest.mark.parametrize("steps", [40, 200])
def test_the_upper_edge_lies_between_2_and_13_over_the_largest_curvature(steps):
    # Below 2 / lambda the error shrinks, above it grows: log |1 - lr lambda|, summed over an even grid of log lr, is
    # back at zero where the real part of the dilogarithm is, at lr lambda = 12.6.
    spec = JobSpec.model_validate(LINEAR | {"probes": [SWEEP | {"low": 0.1, "high": 1e3, "steps": steps}]})
    reading = read(spec)
    _, largest = closed_form(spec, reading.arrays["lr"])
    assert 2 / largest < reading.scalars["lr_usable_max"] < 13 / largest
    assert reading.scalars["lr_usable_min"] < 1 / largest
    assert "open_end" not in reading.scalars


def test_edges_are_where_the_definition_says():
    probe = LrRangeProbe(low=1e-3, high=1e3, steps=10, fraction=0.25)
    rates = [10.0**k for k in range(10)]
    #         initial        fallen by 1/4         minimum  risen by 1/4 of 8
    losses = [8.0, 7.9, 7.5, 5.9, 4.0, 1.0, 0.8, 0.5, 2.4, 2.6, 9.0]
    #         lr: 1   10   100  1e3  1e4  1e5  1e6  1e7  1e8  1e9
    assert running_median(losses, 5) == pytest.approx([8.0, 7.9, 7.5, 5.9, 4.0, 1.0, 1.0, 1.0, 2.4, 2.6, 9.0])
    scalars = probe.edges(rates, losses)
    # After update 3, whose lr is 100, the loss is 5.9 <= 6; the last loss alone is above 1 + 2.
    assert scalars == {
        "loss_initial": 8.0,
        "lr_usable_min": 100.0,
        "lr_usable_max": 1e8,
        "lr_usable_decades": pytest.approx(6.0),
        "lr_steepest": 100.0,
    }


def test_a_single_loss_that_jumps_is_no_edge():
    probe = LrRangeProbe(low=1e-3, high=1e3, steps=10)
    rates = [10.0**k for k in range(10)]
    losses = [8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 50.0, 2.0, 2.0, 2.0]
    scalars = probe.edges(rates, losses)
    assert (scalars["lr_usable_max"], scalars["open_end"]) == (1e9, 1.0)


def test_a_loss_that_is_not_finite_is_the_edge_whatever_the_median_says():
    probe = LrRangeProbe(low=1e-3, high=1e3, steps=10)
    rates = [10.0**k for k in range(10)]
    losses = [8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.9, nan, nan, nan]
    assert probe.edges(rates, losses)["lr_usable_max"] == 1e6
    assert running_median(losses, 5)[-3:] == [inf, inf, inf]


def test_a_loss_that_never_falls_has_a_range_of_no_width_and_one_that_starts_as_nan_has_none():
    probe = LrRangeProbe(low=1e-3, high=1e3, steps=10)
    rates = [10.0**k for k in range(10)]
    assert probe.edges(rates, [2.3] * 8 + [nan] * 3) == {"loss_initial": 2.3, "lr_usable_decades": 0.0}
    assert probe.edges(rates, [nan] * 11) == {}


def test_it_begins_as_the_training_did_whatever_became_of_the_lr(folders):
    # At the end of a cosine the schedule's lr is 0: the sweep goes by the job's.
    records = list(train(JobSpec.model_validate(MLP | {"probes": [SWEEP]}), folders=folders))
    (reading,) = [record for record in records if isinstance(record, Reading)]
    points = [point for record in records if isinstance(record, Metrics) for point in record.points]
    first = next(point.value for point in points if point.key == "train/loss" and point.step == 1)
    assert reading.scalars["loss_initial"] == first
    assert (reading.arrays["lr"][0], reading.arrays["lr"][-1]) == pytest.approx((1e-4, 1e2))
    assert {point.step for point in points if point.key == "lr_range/lr_usable_decades"} == {4}
    assert any(isinstance(record, Figure) and record.name == "lr_range" for record in records)


def test_at_a_constant_lr_the_sweep_is_the_training_itself(folders):
    # A sweep between two lrs that differ by less than a bit of float32 can tell.
    spec = MLP | {"schedule": {"kind": "constant"}, "steps": 12, "precision": "float64"}
    probe = {"kind": "lr_range", "low": 1.0, "high": 1.0 + 1e-15, "steps": 11}
    records = list(train(JobSpec.model_validate(spec | {"probes": [probe]}), folders=folders))
    (reading,) = [record for record in records if isinstance(record, Reading)]
    points = [point for record in records if isinstance(record, Metrics) for point in record.points]
    losses = [point.value for point in points if point.key == "train/loss"]
    assert [reading.scalars["loss_initial"], *reading.arrays["loss"]] == pytest.approx(losses, rel=1e-9)


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"optimizer": {"kind": "muon", "lr": 0.02}, "accumulation": 2},
        {"precision": "float16", "optimizer": {"kind": "adamw", "lr": 1e-3}},
        {"norm": {"kind": "none"}, "precision": "bfloat16", "ema": 0.5},
    ],
    ids=["sgd", "muon in micro-batches", "adamw in float16", "bfloat16 without a norm"],
)
def test_it_is_the_same_bits_each_time(folders, knobs):
    spec = JobSpec.model_validate(MLP | {"probes": [SWEEP]} | knobs)
    first, second = read(spec, folders), read(spec, folders)
    # Not `==`: a sweep that diverged holds NaN.
    assert repr(first) == repr(second)
    assert first.scalars["loss_initial"] > 0


def test_the_training_that_is_done_is_left_alone_and_the_other_is_forgotten(folders):
    spec = JobSpec.model_validate(MLP)
    learner = Learner(spec, torch.device("cpu"), folders)
    made = []

    def anew():
        other = learner.anew()
        made.append(weakref.ref(other.model))
        return other

    before = {name: value.clone() for name, value in learner.model.state_dict().items()}
    random = torch.get_rng_state()
    origin = tuple(parameter.detach().clone() for parameter in learner.model.parameters())
    moment = Moment(4, 0.0, learner.model, learner.replay(4), learner.plain_replay, origin, anew=anew)
    LrRangeProbe(steps=12).read(moment)
    gc.collect()
    assert [ref() for ref in made] == [None]
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in learner.model.state_dict().items())
    assert all(parameter.grad is None for parameter in learner.model.parameters())


def test_a_model_of_no_job_cannot_be_begun_anew():
    model = torch.nn.Linear(1, 1)
    with pytest.raises(ValueError, match="lr_range begins a job anew, got a model of no job; order it as a probe"):
        look(LrRangeProbe(), model, lambda: model(torch.ones(1)).sum(), lr=0.1)


def test_bounds_in_the_wrong_order_are_refused():
    with pytest.raises(ValidationError, match="low must be below high, got low 2 and high 1; swap or widen them"):
        JobSpec.model_validate(MLP | {"probes": [{"kind": "lr_range", "low": 2.0, "high": 1.0}]})


def test_it_costs_its_steps():
    assert LrRangeProbe(steps=30).cost(torch.nn.Linear(1, 1)) == 30


@pytest.mark.parametrize("losses", [[8.0, 7.0, 6.0, 4.0, 2.0, 9.0, nan], [2.3] * 7, [nan] * 7])
def test_the_figure_survives_whatever_was_read(losses):
    probe = LrRangeProbe(steps=6)
    rates = probe.rates(0.1)
    arrays = {"lr": tuple(rates), "loss": tuple(losses[1:]), "smoothed": tuple(running_median(losses, 5)[1:])}
    reading = Reading("lr_range", 6, probe.edges(rates, losses), arrays)
    assert log10(rates[-1] / rates[0]) == pytest.approx(6)
    for arms in ({"": []}, {"": [reading]}, {"a": [reading], "b": [reading] * 3}):
        assert draw(arms, DARK)[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_figure_says_that_higher_losses_are_not_drawn(monkeypatch):
    panels = []
    monkeypatch.setattr(
        "normcore.probes.lr_range_figure.draw_panels", lambda _, those, *__, **___: panels.extend(those)
    )
    draw({"": []})
    assert panels[0].label.startswith("loss, up to twice the initial")


def test_an_error_of_the_sweep_is_a_remark_and_the_training_is_kept(folders, monkeypatch):
    def broken(self):
        raise RuntimeError("no memory left")

    monkeypatch.setattr(Learner, "anew", broken)
    records = list(train(JobSpec.model_validate(MLP | {"probes": [SWEEP]}), folders=folders))
    (remark,) = [record for record in records if isinstance(record, Remark)]
    assert remark.code == "probe-lr_range-failed"
    assert "no memory left" in remark.detail
