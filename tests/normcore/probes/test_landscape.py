"""The landscape probe against closed forms and against a slow, obvious twin; and that it leaves no footprints."""

import copy
import itertools
import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional

from normcore.build import build_model
from normcore.learner import Learner
from normcore.menu.smoothness_probes import LandscapeProbeSpec
from normcore.noise.noise import start_step
from normcore.probes.footprints import no_footprints
from normcore.probes.landscape import LandscapeProbe
from normcore.probes.landscape_figure import draw
from normcore.probes.look import look
from normcore.probes.moment import Moment
from normcore.records import Reading
from normcore.spec import JobSpec
from normcore.statistics.layers import has_running_statistics
from normcore.train import train


class Point(nn.Module):
    """A point in the plane of parameters, with some loss of it."""

    def __init__(self, theta, loss):
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(theta, dtype=torch.float64))
        self.loss = loss

    def forward(self):
        return self.loss(self.theta)


def read(model, replay, lr, **knobs):
    return look(LandscapeProbe(**{"low": 0.5, "high": 4.0, "points": 8} | knobs), model, replay, lr=lr, step=7)


def quadratic(num_features=6):
    generator = torch.Generator().manual_seed(3)
    root = torch.randn(num_features, num_features, generator=generator, dtype=torch.float64)
    hessian = root @ root.T
    theta = torch.randn(num_features, generator=generator, dtype=torch.float64)
    return hessian, Point(theta.tolist(), lambda theta: 0.5 * theta @ hessian @ theta)


def test_on_a_quadratic_loss_gradient_change_and_beta_are_their_closed_forms():
    hessian, model = quadratic()
    theta = model.theta.detach().clone()
    g = hessian @ theta
    reading = read(model, model, lr=0.01)
    for step_size, loss, change in zip(*reading.arrays.values(), strict=True):
        expected = 0.5 * theta @ hessian @ theta - step_size * g @ g + 0.5 * step_size**2 * g @ hessian @ g
        assert loss == pytest.approx(expected.item(), rel=1e-12)
        assert change == pytest.approx(step_size * (hessian @ g).norm().item(), rel=1e-12)
    beta = ((hessian @ g).norm() / g.norm()).item()
    assert reading.scalars["effective_beta"] == pytest.approx(beta, rel=1e-12)
    assert reading.scalars["effective_beta_times_lr"] == pytest.approx(beta * 0.01, rel=1e-12)
    assert beta <= torch.linalg.eigvalsh(hessian).max().item()


@pytest.mark.parametrize("index", [0, 3, 5])
def test_along_an_eigenvector_beta_is_the_eigenvalue(index):
    hessian, model = quadratic()
    values, vectors = torch.linalg.eigh(hessian)
    with torch.no_grad():
        model.theta.copy_(vectors[:, index])
    assert read(model, model, lr=0.1).scalars["effective_beta"] == pytest.approx(values[index].item(), rel=1e-10)


def test_beta_is_the_largest_over_the_points_not_that_of_the_longest():
    # grad L = sin: along it the curvature falls, so the shortest step meets the largest beta.
    model = Point([1.0], lambda theta: -theta.cos().sum())
    reading = read(model, model, lr=0.2, low=0.1)
    g = math.sin(1.0)
    betas = [abs(math.sin(1.0 - eta * g) - g) / (eta * g) for eta in reading.arrays["step_sizes"]]
    assert reading.scalars["effective_beta"] == pytest.approx(max(betas), rel=1e-12)
    model = Point([0.1, 2.0], lambda theta: (theta**4).sum() / 4)
    reading = read(model, model, lr=1.5)
    g = model.theta.detach() ** 3
    moved = [(model.theta.detach() - eta * g) ** 3 - g for eta in reading.arrays["step_sizes"]]
    betas = [(m.norm() / (eta * g.norm())).item() for m, eta in zip(moved, reading.arrays["step_sizes"], strict=True)]
    assert reading.scalars["effective_beta"] == pytest.approx(max(betas), rel=1e-12)
    assert max(betas) > 1.1 * betas[0]


def test_step_sizes_are_evenly_spaced_multiples_of_the_lr():
    _, model = quadratic()
    reading = read(model, model, lr=0.1, low=0.5, high=2.0, points=4)
    assert reading.arrays["step_sizes"] == pytest.approx((0.05, 0.1, 0.15, 0.2), rel=1e-15)
    assert (reading.probe, reading.step) == ("landscape", 7)


def test_scalars_are_the_ends_of_the_arrays():
    _, model = quadratic()
    reading = read(model, model, lr=0.3)
    for name in ("loss", "gradient_change"):
        assert reading.scalars[f"{name}_min"] == min(reading.arrays[name])
        assert reading.scalars[f"{name}_max"] == max(reading.arrays[name])
    assert "nonfinite_points" not in reading.scalars


def vgg(noise="santurkar", norm="batch", precision="float32"):
    spec = JobSpec.model_validate(
        {
            "model": {"kind": "vgg", "width": 0.0625},
            "data": {"kind": "digits"},
            "norm": {"kind": norm},
            "noise": {"kind": noise},
            "precision": precision,
        }
    )
    model = build_model(spec)
    generator = torch.Generator().manual_seed(1)
    dtype = next(model.parameters()).dtype
    x, y = torch.randn(16, 1, 32, 32, generator=generator, dtype=dtype), torch.arange(16) % 10

    def replay(of=model):
        start_step(of, 0, 5)
        return functional.cross_entropy(of(x), y)

    return model, replay


def flat(tensors):
    return torch.cat([tensor.detach().double().flatten() for tensor in tensors])


def twin(model, replay, lr, multiples):
    """The definition, on a deep copy for every point."""
    base = copy.deepcopy(model)
    base.zero_grad()
    replay(base).backward()
    g = [p.grad for p in base.parameters()]
    losses, changes, betas = [], [], []
    for multiple in multiples:
        there = copy.deepcopy(model)
        with torch.no_grad():
            for p, direction in zip(there.parameters(), g, strict=True):
                p.add_(direction, alpha=-multiple * lr)
        there.zero_grad()
        loss = replay(there)
        loss.backward()
        change = (flat(p.grad for p in there.parameters()) - flat(g)).norm().item()
        losses.append(loss.item())
        changes.append(change)
        betas.append(change / (multiple * lr * flat(g).norm().item()))
    return losses, changes, betas


@pytest.mark.parametrize(("precision", "rel"), [("float32", 1e-6), ("float64", 1e-13)])
def test_on_a_vgg_with_batch_norm_and_noise_it_is_the_deepcopy_twin(precision, rel):
    model, replay = vgg(precision=precision)
    losses, changes, betas = twin(model, replay, 0.1, (0.5, 1.0, 1.5, 2.0))
    reading = read(model, replay, lr=0.1, high=2.0, points=4)
    assert reading.arrays["loss"] == tuple(losses)
    assert reading.arrays["gradient_change"] == pytest.approx(tuple(changes), rel=rel)
    assert reading.scalars["effective_beta"] == pytest.approx(max(betas), rel=rel)


def state(model):
    tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    return tensors | {f"grad.{name}": p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_it_restores_parameters_buffers_gradients_and_modes_bit_for_bit():
    model, replay = vgg()
    model.blocks[2].eval()
    replay().backward()
    before, gradients = state(model), [p.grad for p in model.parameters()]
    modes = [module.training for module in model.modules()]
    assert any(name.endswith("num_batches_tracked") and int(count) > 0 for name, count in before.items())
    read(model, replay, lr=0.3, points=3)
    after = state(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.grad is gradient for p, gradient in zip(model.parameters(), gradients, strict=True))
    assert [module.training for module in model.modules()] == modes


def test_it_leaves_the_global_generator_alone():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    x = torch.randn(8, 4)
    read(model, lambda: model(x).square().mean(), lr=0.1)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    read(model, lambda: model(x).square().mean(), lr=0.1)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_parameter_without_gradient_stays_out():
    _, model = quadratic()
    alone = read(model, model, lr=0.01)
    model.unused = nn.Parameter(torch.ones(3))
    assert read(model, model, lr=0.01) == alone
    assert model.unused.tolist() == [1.0, 1.0, 1.0]
    assert model.unused.grad is None


@pytest.mark.parametrize("bn_mode", ["batch", "frozen"])
def test_a_parameter_that_is_not_learned_stays_out(bn_mode):
    _, model = quadratic()
    alone = read(model, model, lr=0.01, bn_mode=bn_mode)
    model.still = nn.Parameter(torch.ones(3), requires_grad=False)
    assert read(model, model, lr=0.01, bn_mode=bn_mode) == alone


def test_a_sweep_that_blows_up_keeps_its_finite_points_and_counts_the_others():
    model = Point([3.0], lambda theta: (theta**2).sum() / 2 + torch.where(theta < -10, torch.inf, 0.0).sum())
    reading = read(model, model, lr=1.0, low=1.0, high=8.0, points=8)
    assert reading.arrays["loss"] == (0.0, 4.5, 18.0, 40.5, math.inf, math.inf, math.inf, math.inf)
    assert reading.scalars["nonfinite_points"] == 4
    assert reading.scalars["loss_max"] == 40.5
    assert reading.scalars["gradient_change_max"] == pytest.approx(12.0)
    assert reading.scalars["effective_beta"] == pytest.approx(1.0)


def test_a_gradient_that_is_not_finite_gives_no_scalars_but_the_count():
    model = Point([0.0], lambda theta: theta.abs().sqrt().sum())
    reading = read(model, model, lr=1.0)
    assert reading.scalars == {"nonfinite_points": 8.0}


def test_an_lr_of_zero_gives_no_scalars_since_nothing_moved():
    _, model = quadratic()
    reading = read(model, model, lr=0.0)
    assert reading.scalars == {}
    assert set(reading.arrays["gradient_change"]) == {0.0}
    assert png_size(draw({"": [reading]}))


def test_an_error_in_the_replay_still_restores_the_model():
    model, replay = vgg()
    replay().backward()
    before = state(model)

    def broken():
        replay()
        raise FloatingPointError("broken")

    with pytest.raises(FloatingPointError, match="broken"):
        read(model, broken, lr=0.3)
    after = state(model)
    assert all(torch.equal(before[name], after[name]) for name in before)


def png_size(png):
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


@pytest.mark.parametrize("count", [0, 1, 5])
def test_the_figure_is_a_png_however_many_readings(count):
    _, model = quadratic()
    readings = [read(model, model, lr=0.1) for _ in range(count)]
    width, height = png_size(draw({"": readings}))
    assert width > 600
    assert height > 600


def test_the_figure_calls_no_squared_error_nats(monkeypatch):
    labels = []
    monkeypatch.setattr("normcore.probes.landscape_figure.draw_panels", lambda _, panels, *__: labels.extend(panels))
    draw({"": []})
    assert labels[0].label == "loss along the gradient\n(nats, or squared error)"


def test_the_figure_survives_readings_without_finite_points():
    model = Point([0.0], lambda theta: theta.abs().sqrt().sum())
    reading = read(model, model, lr=1.0)
    assert png_size(draw({"": [reading]}))


@pytest.mark.parametrize(("low", "high", "points"), [(0.01, 30.0, 5), (0.5, 2.0, 3)])
def test_step_sizes_of_even_logarithms_have_the_same_ratio(low, high, points):
    _, model = quadratic()
    sizes = read(model, model, lr=0.1, low=low, high=high, points=points, spacing="log").arrays["step_sizes"]
    assert sizes[0] == pytest.approx(0.1 * low, rel=1e-15)
    assert sizes[-1] == pytest.approx(0.1 * high, rel=1e-12)
    ratios = [after / before for before, after in itertools.pairwise(sizes)]
    assert ratios == pytest.approx([(high / low) ** (1 / (points - 1))] * (points - 1), rel=1e-12)


def test_a_preset_is_the_range_of_one_of_the_papers_nets():
    spec = LandscapeProbeSpec.model_validate
    assert (spec({"preset": "vgg"}).low, spec({"preset": "vgg"}).high) == (0.5, 4.0)
    linear = spec({"preset": "deep_linear", "points": 3, "spacing": "log"})
    assert (linear.low, linear.high, linear.points, linear.spacing) == (0.01, 30.0, 3, "log")
    assert "preset" not in linear.model_dump()
    assert LandscapeProbeSpec.model_validate_json(linear.model_dump_json()) == linear


@pytest.mark.parametrize(
    ("knobs", "sentence"),
    [
        ({"preset": "vgg", "low": 1.0}, "give a preset or low and high, not both, got preset 'vgg' and low"),
        ({"preset": "resnet"}, "preset must be one of vgg, deep_linear, got 'resnet'"),
        ({"preset": ["vgg"]}, r"preset must be one of vgg, deep_linear, got \['vgg'\]"),
    ],
)
def test_a_preset_beside_its_knobs_or_of_no_net_is_refused(knobs, sentence):
    with pytest.raises(ValidationError, match=sentence):
        LandscapeProbeSpec.model_validate(knobs)


def learner_of(folders, **changes):
    spec = {"model": {"kind": "mlp", "hidden": [8]}, "data": {"kind": "digits", "size": 8}, "batch_size": 12} | changes
    torch.manual_seed(0)
    return Learner(JobSpec.model_validate(spec), torch.device("cpu"), folders)


def read_at(learner, step=1, lr=0.1, **knobs):
    """A reading at a step of a job."""
    model, remembered = learner.model, learner.remembered()

    def plain(ahead=0, dtype=None, noise_ahead=0):
        return learner.plain_replay(step + ahead, remembered, dtype, noise_ahead)

    learner.backward(learner.forward(step)[0])
    gradient = tuple(parameter.grad for parameter in model.parameters())
    with no_footprints(model) as origin:
        moment = Moment(step, lr, model, learner.replay(step, remembered), plain, tuple(origin), gradient)
        return LandscapeProbe(**{"low": 0.5, "high": 2.0, "points": 4} | knobs).read(moment)


def twin_at(learner, lr, multiples, *, frozen):
    """The twin of a learner's first step in float64, and where frozen with norms that evaluate."""
    model, batch = copy.deepcopy(learner.model).double(), learner.batch(1).to(torch.float64)

    def replay(of):
        for module in of.modules():
            module.training = not (frozen and has_running_statistics(module))
        start_step(of, 0, 0)
        return functional.cross_entropy(of(batch.inputs), batch.labels)

    return twin(model, replay, lr, multiples)


def assert_is(reading, losses, changes, betas, rel):
    assert reading.arrays["loss"] == pytest.approx(losses, rel=rel)
    assert reading.arrays["gradient_change"] == pytest.approx(changes, rel=rel)
    assert reading.scalars["effective_beta"] == pytest.approx(max(betas), rel=rel)


@pytest.mark.parametrize("bn_mode", ["batch", "frozen"])
@pytest.mark.parametrize("precision", ["training", "float64"])
@pytest.mark.parametrize(
    ("model", "trains_in"), [("mlp", "float32"), ("mlp", "bfloat16"), ("mlp", "float16"), ("vgg", "float32")]
)
def test_frozen_and_float64_readings_are_those_of_a_twin(folders, model, trains_in, precision, bn_mode):
    nets = {"mlp": {}, "vgg": {"model": {"kind": "vgg", "width": 0.0625, "dropout": 0.25}, "data": {"kind": "digits"}}}
    learner = learner_of(folders, **nets[model], noise={"kind": "santurkar"}, precision=trains_in)
    learner.forward(1)
    if bn_mode == "frozen":
        # Here running statistics stand as after the step's own forward pass.
        with no_footprints(learner.model):
            learner.forward(1)
            expected = twin_at(learner, 0.1, (0.5, 1.0, 1.5, 2.0), frozen=True)
    else:
        expected = twin_at(learner, 0.1, (0.5, 1.0, 1.5, 2.0), frozen=False)
    reading = read_at(learner, bn_mode=bn_mode, precision=precision)
    assert reading.facts == {"bn_mode": bn_mode, "precision": precision}
    half = trains_in != "float32"
    rel = 1e-9 if precision == "float64" else 0.3 if half else 2e-3
    assert_is(reading, *expected, rel=rel)


def test_frozen_statistics_are_those_that_evaluation_right_now_would_use(folders):
    spec = {
        "model": {"kind": "mlp", "hidden": [8]},
        "data": {"kind": "digits", "size": 8},
        "batch_size": 64,
        "steps": 6,
    }
    spec |= {"norm": {"kind": "batch", "estimator": "population"}}
    probe = {"kind": "landscape", "every": 6, "low": 0.5, "high": 2.0, "points": 3, "bn_mode": "frozen"}
    jobs = [spec | {"evaluate_every": every, "probes": [probe]} for every in (6, 2)]
    seen = [
        [record.arrays for record in train(JobSpec.model_validate(job), folders=folders) if isinstance(record, Reading)]
        for job in jobs
    ]
    assert seen[0] == seen[1]


def test_float64_sees_the_small_steps_in_which_float32_sees_its_own_rounding(folders):
    """Close to a minimum of the deep linear net g is small, and a hundredth of the lr moves weights by no whole bit."""
    data = {"kind": "gaussian", "num_samples": 64}
    net = {"model": {"kind": "deep_linear", "depth": 3}, "data": data, "norm": {"kind": "none"}, "batch_size": 64}
    learner = learner_of(folders, **net)
    exact = learner.batch(1).to(torch.float64)
    solution = torch.linalg.lstsq(exact.inputs, exact.labels).solution.T
    first, second, noise = torch.randn(3, 10, 10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    turns = [torch.linalg.qr(each).Q for each in (first, second)]
    with torch.no_grad():
        weights = (*turns, solution @ (turns[1] @ turns[0]).T + 1e-7 * noise)
        for weight, value in zip(learner.model.parameters(), weights, strict=True):
            weight.copy_(value)
    model = copy.deepcopy(learner.model).double()
    lr = 1e-4
    _, _, betas = twin(model, lambda of: (of(exact.inputs) - exact.labels).square().sum(), lr, (0.01, 0.02))
    assert 0.1 < max(betas) * lr < 2
    knobs = {"lr": lr, "low": 0.01, "high": 0.02, "points": 2}
    wide, narrow = (read_at(learner, precision=name, **knobs) for name in ("float64", "training"))
    assert wide.scalars["effective_beta"] == pytest.approx(max(betas), rel=1e-6)
    assert narrow.scalars["effective_beta"] < max(betas) / 10
