"""The line between two weights: on quadratics, between permuted copies of a net, and in trainings."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from normcore.learner import Learner
from normcore.probes.interpolation import InterpolationProbe, interpolate
from normcore.probes.interpolation_figure import draw
from normcore.probes.look import look
from normcore.probes.sheet import DARK
from normcore.records import Checkpoint, Finished, Metrics, Reading, Remark
from normcore.spec import JobSpec
from normcore.train import train
from normcore.weights.spectral import spectral_norms

MLP = {
    "model": {"kind": "mlp", "hidden": [8], "dropout": 0.25},
    "data": {"kind": "digits", "size": 8, "crop_padding": 1},
    "norm": {"kind": "batch"},
    "noise": {"kind": "santurkar"},
    "batch_size": 16,
    "steps": 5,
}
LINE = {"kind": "interpolation", "points": 5}


def last_weights(records):
    """Of a training, by the names of the state dict."""
    (tensors,) = [record.snapshot.tensors for record in records if isinstance(record, Checkpoint) and record.last]
    return {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}


def weights(*values):
    return {"weight": torch.tensor([values], dtype=torch.float64)}


def test_on_a_convex_quadratic_losses_and_barrier_are_their_closed_forms():
    # L(w) = a (w_0 - 1)^2 + b (w_1 + 2)^2 along a line is a parabola: it stands below its chord by
    # c alpha (1 - alpha), with c = a d_0^2 + b d_1^2 and d the difference of the ends.
    model = nn.Linear(2, 1, bias=False, dtype=torch.float64)
    start, end = torch.tensor([3.0, 1.0]).double(), torch.tensor([-1.0, 0.5]).double()

    def at(w):
        return 0.5 * (w[0] - 1) ** 2 + 4 * (w[1] + 2) ** 2

    reading = interpolate(model, lambda: at(model.weight[0]), weights(*start), weights(*end), points=9)
    alphas = reading.arrays["alpha"]
    assert alphas == tuple(number / 8 for number in range(-2, 11))
    expected = [at((1 - alpha) * start + alpha * end).item() for alpha in alphas]
    assert reading.arrays["loss"] == pytest.approx(expected, rel=1e-12)
    scalars, d = reading.scalars, end - start
    c = (0.5 * d[0] ** 2 + 4 * d[1] ** 2).item()
    assert (scalars["loss_start"], scalars["loss_end"]) == (at(start).item(), at(end).item())
    assert scalars["barrier"] == pytest.approx(-c * 1 / 8 * 7 / 8, rel=1e-9)
    assert scalars["distance"] == pytest.approx(d.norm().item(), rel=1e-12)


def test_between_two_valleys_stands_the_hill():
    model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    reading = interpolate(model, lambda: (1 - model.weight**2).square().sum(), weights(-1.0), weights(1.0), points=5)
    assert reading.arrays["loss"][1:6] == (0, 0.75**2, 1, 0.75**2, 0)
    assert reading.scalars == {"loss_start": 0, "loss_end": 0, "barrier": 1, "largest_rise": 1, "distance": 2}


def test_permuted_copies_of_a_net_compute_the_same_and_have_a_barrier_between_them():
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    x = torch.randn(64, 3, dtype=torch.float64)
    y = model(x).argmax(1)
    for _ in range(100):
        model.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.sub_(parameter.grad)
    one = {name: value.clone() for name, value in model.state_dict().items()}
    turned = [1, 2, 3, 4, 5, 0]
    other = {"0.weight": one["0.weight"][turned], "0.bias": one["0.bias"][turned]}
    other |= {"2.weight": one["2.weight"][:, turned], "2.bias": one["2.bias"]}
    reading = interpolate(model, lambda: functional.cross_entropy(model(x), y), one, other)
    assert reading.scalars["loss_start"] == pytest.approx(reading.scalars["loss_end"], rel=1e-9)
    assert reading.scalars["barrier"] > 0.5 * reading.scalars["loss_start"]
    same = interpolate(model, lambda: functional.cross_entropy(model(x), y), one, one)
    assert same.scalars["barrier"] == pytest.approx(0, abs=1e-12)
    assert same.scalars["distance"] == 0


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 1))
    x, random = torch.randn(8, 3), torch.get_rng_state()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    other = {name: value + 1 for name, value in before.items()}
    interpolate(model, lambda: model(x).square().sum(), before, other)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize(("theirs", "said"), [({}, "None"), ({"weight": torch.zeros(2, 1)}, r"\(2, 1\)")])
def test_weights_of_another_model_are_refused(theirs, said):
    model = nn.Linear(2, 1, bias=False)
    sentence = rf"got weight of shape \(1, 2\) in the model and {said} in the weights; take two trainings of the same"
    with pytest.raises(ValueError, match=sentence):
        interpolate(model, model.weight.sum, dict(model.named_parameters()), theirs)


def test_losses_that_are_not_finite_are_counted_and_what_needs_them_is_left_out():
    probe = InterpolationProbe(points=3, margin=0.5)
    assert probe.scalars([math.inf, 2.0, 1.0, 3.0, math.nan]) == {
        "loss_start": 2.0,
        "loss_end": 3.0,
        "barrier": -1.5,
        "largest_rise": 2.0,
        "nonfinite_points": 2.0,
    }
    assert probe.scalars([1.0, 2.0, math.nan, 3.0, 1.0]) == {"loss_start": 2, "loss_end": 3, "nonfinite_points": 1}
    assert probe.scalars([1.0, math.inf, 1.0, 3.0, 1.0]) == {"loss_end": 3, "nonfinite_points": 1}


@pytest.mark.parametrize(("margin", "beyond"), [(0.0, 0), (0.1, 2), (0.25, 5), (0.26, 5), (1.0, 20)])
def test_both_ends_are_places_and_the_margin_is_never_overstepped(margin, beyond):
    places = InterpolationProbe(margin=margin).places()
    assert places.index(0.0) == beyond
    assert places.index(1.0) == beyond + 20
    assert (places[0], places[-1]) == pytest.approx((-beyond / 20, 1 + beyond / 20))


def test_in_a_training_it_runs_from_the_first_weights_to_the_last_on_the_last_batch(folders):
    spec = JobSpec.model_validate(MLP | {"probes": [LINE]})
    records = list(train(spec, folders=folders))
    (reading,) = [record for record in records if isinstance(record, Reading)]
    learner = Learner(spec, torch.device("cpu"), folders)
    assert reading.scalars["loss_start"] == learner.replay(5)().item()
    first = {name: value.clone() for name, value in learner.model.named_parameters()}
    last = next(record.snapshot.tensors for record in records if isinstance(record, Checkpoint) and record.last)
    learner.model.load_state_dict({name: last[f"model.{name}"] for name in learner.model.state_dict()})
    assert reading.scalars["loss_end"] == learner.replay(5)().item()
    ways = [(last[f"model.{name}"].double() - value.double()).square().sum() for name, value in first.items()]
    assert reading.scalars["distance"] == pytest.approx(torch.stack(ways).sum().sqrt().item(), rel=1e-12)
    keys = {point.key for record in records if isinstance(record, Metrics) for point in record.points}
    assert "interpolation/barrier" in keys


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "float16", "accumulation": 2, "ema": 0.5},
        {
            "model": {"kind": "transformer", "depth": 1, "width": 8, "heads": 2},
            "data": {"kind": "digits", "arrange": "tokens"},
            "norm": {"kind": "layer"},
            "precision": "bfloat16",
        },
        {"norm": {"kind": "none"}, "weight": {"kind": "weight_norm", "data_dependent_init": True}},
    ],
    ids=["float16 in micro-batches", "transformer in bfloat16", "first weights from data"],
)
def test_it_reads_whatever_trains(folders, changes):
    probe = LINE | {"bn_mode": "frozen"}
    records = list(train(JobSpec.model_validate(MLP | {"steps": 3, "probes": [probe]} | changes), folders=folders))
    assert not [record for record in records if isinstance(record, Remark) and "probe" in record.code]
    (reading,) = [record for record in records if isinstance(record, Reading)]
    assert reading.facts == {"bn_mode": "frozen"}
    assert all(map(math.isfinite, reading.arrays["loss"]))


def from_another(folders, others, changes=None, **knobs):
    """The readings and the remarks of probes of a training of seed 1."""
    spec = JobSpec.model_validate(MLP | {"seed": 1, "probes": [LINE | {"job": "one"} | knobs]} | (changes or {}))
    records = list(train(spec, folders=folders, others=others))
    remarks = [record for record in records if isinstance(record, Remark) and record.code.startswith("probe-")]
    return spec, records, [record for record in records if isinstance(record, Reading)], remarks


def test_the_line_comes_from_the_last_weights_of_another_job(folders):
    one = last_weights(train(JobSpec.model_validate(MLP), folders=folders))
    spec, records, (reading,), remarks = from_another(folders, {"one": one})
    assert not remarks
    assert reading.facts == {"bn_mode": "batch", "from": "last weights of job one"}
    own, learner = last_weights(records), Learner(spec, torch.device("cpu"), folders)
    for state, end in ((one, "loss_start"), (own, "loss_end")):
        learner.model.load_state_dict(state)
        assert reading.scalars[end] == learner.replay(5)().item()
    names = [name for name, _ in learner.model.named_parameters()]
    ways = [(own[name].double() - one[name].double()).square().sum() for name in names]
    assert reading.scalars["distance"] == pytest.approx(torch.stack(ways).sum().sqrt().item(), rel=1e-12)
    # Half way it is neither, and the loss of the mixed net.
    learner.model.load_state_dict(one | {name: 0.5 * one[name] + 0.5 * own[name] for name in names})
    half = reading.arrays["loss"][reading.arrays["alpha"].index(0.5)]
    assert half == learner.replay(5)().item()
    assert math.isfinite(reading.scalars["barrier"])


def test_from_a_job_of_the_same_weights_the_line_is_flat(folders):
    spec = JobSpec.model_validate(MLP | {"seed": 1, "precision": "float64"})
    one = last_weights(train(spec, folders=folders))
    _, _, (reading,), _ = from_another(folders, {"one": one}, {"precision": "float64"})
    assert reading.scalars["distance"] == 0
    assert reading.scalars["barrier"] == pytest.approx(0, abs=1e-12)
    losses = reading.arrays["loss"]
    assert losses == pytest.approx([reading.scalars["loss_end"]] * len(losses), rel=1e-12)


def test_frozen_statistics_are_mixed_with_the_weights(folders):
    still = MLP | {"noise": {"kind": "none"}, "model": {"kind": "mlp", "hidden": [8]}}
    one = last_weights(train(JobSpec.model_validate(still), folders=folders))
    spec, records, (reading,), _ = from_another(folders, {"one": one}, still | {"seed": 1}, bn_mode="frozen")
    own, learner = last_weights(records), Learner(spec, torch.device("cpu"), folders)
    learner.model.eval()
    for alpha in (0.0, 0.5, 1.0):
        mixed = {name: (1 - alpha) * one[name] + alpha * own[name] for name in own if own[name].is_floating_point()}
        learner.model.load_state_dict(own | mixed)
        here = reading.arrays["loss"][reading.arrays["alpha"].index(alpha)]
        assert here == pytest.approx(learner.replay(5)().item(), rel=1e-6)


def test_spectral_norms_divide_by_the_largest_singular_value_at_each_place(folders):
    by_norm = MLP | {"norm": {"kind": "none"}, "weight": {"kind": "spectral"}}
    one = last_weights(train(JobSpec.model_validate(by_norm), folders=folders))
    spec, _, (reading,), _ = from_another(folders, {"one": one}, by_norm | {"seed": 1})
    learner = Learner(spec, torch.device("cpu"), folders)
    learner.model.load_state_dict(one)
    for method, weight in spectral_norms(learner.model):
        u, _, v = torch.linalg.svd(weight.detach().flatten(1))
        method.u.copy_(u[:, 0])
        method.v.copy_(v[0])
    assert reading.scalars["loss_start"] == pytest.approx(learner.replay(5)().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("others", "said"),
    [
        (
            None,
            "interpolation begins at the last weights of job one, got none: its last checkpoint",
        ),
        ({"one": {"classifier.bias": torch.zeros(10)}}, "weights must be of the model that they are mixed in, got"),
    ],
)
def test_without_the_other_weights_the_probe_fails_and_the_training_does_not(folders, others, said):
    _, records, readings, (remark,) = from_another(folders, others)
    assert not readings
    assert remark.code == "probe-interpolation-failed"
    assert said in remark.detail
    assert isinstance(records[-1], Finished)


def test_a_model_of_no_job_has_no_initial_weights():
    model = nn.Linear(1, 1)
    with pytest.raises(ValueError, match="got a model of no job; order it as a probe of a job, or give both weights"):
        look(InterpolationProbe(), model, lambda: model(torch.ones(1)).sum(), lr=0.1)


def test_it_costs_its_forward_passes():
    assert InterpolationProbe(points=21, margin=0.25).cost(nn.Linear(1, 1)) == pytest.approx(0.36 * 31)


@pytest.mark.parametrize("losses", [[3.0, 2.0, 1.0, 3.0, 200.0], [1.0, math.inf, math.nan, 1.0, 1.0]])
def test_the_figure_survives_whatever_was_read(losses):
    probe = InterpolationProbe(points=3, margin=0.5)
    arrays = {"alpha": tuple(probe.places()), "loss": tuple(losses)}
    reading = Reading("interpolation", 6, probe.scalars(losses), arrays)
    other = replace(reading, facts={"from": "last weights of job 019ab2c4-7d1e-7aaa-8123-5f0d9c1b2a3e"})
    for arms in ({"": []}, {"": [reading]}, {"a": [reading], "b": [reading] * 3, "c": [other]}):
        assert draw(arms, DARK)[:8] == b"\x89PNG\r\n\x1a\n"
