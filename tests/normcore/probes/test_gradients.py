"""The gradients probe against closed forms, and what depth and norms do to gradients."""

import math
from itertools import product

import pytest
import torch
from torch import nn
from torch.nn import functional

from normcore.build import build_model
from normcore.learner import Learner
from normcore.probes.footprints import no_footprints
from normcore.probes.gradients import GradientsProbe, depth_slope
from normcore.probes.gradients_figure import draw
from normcore.probes.look import look
from normcore.probes.moment import Moment
from normcore.probes.sheet import DARK, LIGHT
from normcore.spec import JobSpec


def read(model, losses, updated, batches=3, step=7):
    """A reading of a model whose loss, `ahead` steps from here, is `losses(ahead)`."""
    with no_footprints(model) as origin:
        gradient = torch.autograd.grad(losses(0), list(model.parameters()), allow_unused=True)

        def plain(ahead=0, dtype=None):
            return lambda: losses(ahead)

        parameters = (tuple(origin), gradient, tuple(updated))
        moment = Moment(step, 0.1, model, lambda: losses(0), plain, *parameters)
        return GradientsProbe(batches=batches).read(moment)


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear(features=5):
    model = nn.Linear(features, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(gaussian(1, features, seed=9))
    return model


def test_of_a_linear_loss_gradients_are_the_samples_and_all_is_closed_form():
    # The loss of batch i is <mean of its rows, theta>, so its gradient is that mean, wherever theta is.
    samples, count = 10, 4
    model, rows = linear(), gaussian(count, samples, 5) + 1.0
    updated = [model.weight.detach() * 1.25]
    reading = read(model, lambda ahead: model(rows[ahead]).mean(), updated, batches=count)
    means = rows.mean(1)
    trace = means.var(0).sum()
    signal = means.mean(0).square().sum() - trace / count
    assert reading.arrays["noise"] == pytest.approx((trace.item(), signal.item(), samples), rel=1e-12)
    expected = {
        "gradient_norm": means[0].norm().item(),
        "update_ratio": 0.25,
        "cosine": functional.cosine_similarity(means[0], means[1], dim=0).item(),
        "noise_scale": samples * (trace / signal).item(),
    }
    assert reading.scalars == pytest.approx({f"{name}_total": value for name, value in expected.items()}, rel=1e-12)
    for name, value in expected.items():
        assert reading.arrays[name] == pytest.approx((value,), rel=1e-12), name
    assert (reading.layers, reading.probe, reading.step) == (("",), "gradients", 7)


@pytest.mark.parametrize("batches", [2, 3])
def test_noise_and_signal_are_unbiased_estimates_of_a_known_covariance(batches):
    # Batches are drawn from three: the mean over all draws of so many is the expectation.
    model, means = linear(3), gaussian(3, 3)
    noise = [
        read(model, lambda ahead, of=of: model(of[ahead : ahead + 1]).mean(), [model.weight.detach()], batches)
        for of in map(torch.stack, product(means, repeat=batches))
    ]
    found = torch.tensor([reading.arrays["noise"] for reading in noise], dtype=torch.float64).mean(0).tolist()
    assert found[0] == pytest.approx(means.var(0, correction=0).sum().item(), rel=1e-10)
    assert found[1] == pytest.approx(means.mean(0).square().sum().item(), rel=1e-10)


def test_it_is_the_estimate_of_the_paper_from_two_batch_sizes():
    samples, count = 6, 3
    model, rows = linear(), gaussian(count, samples, 5)
    reading = read(model, lambda ahead: model(rows[ahead]).square().mean(), [model.weight.detach()], batches=count)
    each = torch.stack([torch.autograd.grad(model(batch).square().mean(), model.weight)[0] for batch in rows])
    small, big = each.square().sum((1, 2)).mean(), each.mean(0).square().sum()
    b, B = samples, count * samples  # noqa: N806 (the paper's names)
    signal, trace = (B * big - b * small) / (B - b), (small - big) / (1 / b - 1 / B)
    assert reading.arrays["noise"][:2] == pytest.approx((trace.item() / b, signal.item()), rel=1e-10)


def test_equal_batches_have_no_noise():
    model, x = linear(), gaussian(4, 5)
    reading = read(model, lambda _: model(x).square().mean(), [model.weight.detach()], batches=4)
    assert reading.scalars["noise_scale_total"] == pytest.approx(0, abs=1e-12)


def test_a_gradient_that_is_all_noise_has_no_noise_scale():
    model, a = linear(), gaussian(2, 5)
    reading = read(model, lambda ahead: model(a * (-1) ** ahead).mean(), [model.weight.detach()], batches=2)
    assert "noise_scale_total" not in reading.scalars
    assert math.isnan(reading.arrays["noise_scale"][0])
    assert reading.arrays["noise"][1] < 0
    assert reading.scalars["cosine_total"] == pytest.approx(-1)


def test_on_a_quadratic_the_next_gradient_is_that_at_the_new_weights():
    root = gaussian(5, 5)
    hessian, model = root @ root.T, linear()
    theta = model.weight.detach().clone()
    after = theta - 0.3 * theta @ hessian
    reading = read(model, lambda _: (model.weight @ hessian * model.weight).sum() / 2, [after])
    g, h = theta @ hessian, after @ hessian
    assert reading.scalars["cosine_total"] == pytest.approx(functional.cosine_similarity(g, h).item(), rel=1e-12)
    assert reading.scalars["update_ratio_total"] == pytest.approx(0.3 * (g.norm() / theta.norm()).item(), rel=1e-12)
    # No batch is given to the model, so there is no size to state the noise in.
    assert "noise_scale_total" not in reading.scalars


def test_scalars_are_of_all_parameters_and_arrays_of_the_weights_of_layers():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)).double()
    x = gaussian(6, 4)
    updated = [parameter.detach() * 1.5 for parameter in model.parameters()]
    reading = read(model, lambda _: model(x).square().mean(), updated)
    gradients = dict(zip(dict(model.named_parameters()), torch.autograd.grad(
        model(x).square().mean(), list(model.parameters())), strict=True))  # fmt: skip
    assert reading.layers == ("0", "2")
    assert reading.arrays["gradient_norm"] == pytest.approx(
        tuple(gradients[name].norm().item() for name in ("0.weight", "2.weight"))
    )
    everything = torch.cat([gradient.flatten() for gradient in gradients.values()])
    assert reading.scalars["gradient_norm_total"] == pytest.approx(everything.norm().item())
    assert reading.arrays["update_ratio"] == pytest.approx((0.5, 0.5))


def test_the_slope_over_the_depth_is_that_of_least_squares():
    assert depth_slope([1.0, 10.0, 100.0]) == pytest.approx(1)
    values = gaussian(6).exp().tolist()
    x = torch.stack([torch.ones(6), torch.arange(6.0)], 1).double()
    y = torch.tensor(values, dtype=torch.float64).log10().unsqueeze(1)
    assert depth_slope(values) == pytest.approx(torch.linalg.lstsq(x, y).solution[1].item(), rel=1e-9)
    assert math.isnan(depth_slope([1.0, 0.0, math.inf, math.nan]))


def deep(norm, activation="sigmoid", depth=10):
    model = {"kind": "mlp", "hidden": [10] * depth, "activation": activation}
    data = {"kind": "digits", "size": 8}
    return build_model(JobSpec.model_validate({"model": model, "data": data, "norm": {"kind": norm}})).double()


def look_at(model, loss):
    return look(GradientsProbe(batches=2), model, loss, lr=0.1)


def test_gradients_vanish_through_sigmoids_and_batch_norm_brings_them_back():
    x, y = gaussian(50, 1, 8, 8), torch.arange(50) % 10
    slopes = {}
    for norm in ("none", "batch"):
        model = deep(norm)
        reading = look_at(model, lambda model=model: functional.cross_entropy(model(x), y))
        slopes[norm] = reading.scalars["depth_slope"]
        assert len(reading.arrays["gradient_norm"]) == 11
    # A sigmoid's slope is 1/4 at most, and glorot weights keep the size of what they are given.
    assert slopes["none"] > -math.log10(1 / 4) - 0.1
    assert abs(slopes["batch"]) < 0.2 * slopes["none"]


def scaled(model, factors):
    layers = [*(block.linear for block in model.blocks), model.classifier]
    with torch.no_grad():
        for layer, factor in zip(layers, factors, strict=True):
            layer.weight.mul_(factor)


def test_a_planted_layer_of_exploding_gradients_is_found():
    # A relu net without biases is homogeneous in each weight: a weight times a, another over a, is the same function.
    model, x = deep("none", "relu", depth=5), gaussian(50, 1, 8, 8)
    before = look_at(model, lambda: model(x).square().mean()).arrays["gradient_norm"]
    scaled(model, [1, 1, 1 / 1000, 1, 1000, 1])
    after = look_at(model, lambda: model(x).square().mean()).arrays["gradient_norm"]
    growth = [new / old for new, old in zip(after, before, strict=True)]
    assert growth == pytest.approx([1, 1, 1000, 1, 1 / 1000, 1], rel=1e-9)


def test_gradients_that_grow_from_layer_to_layer_tilt_the_slope_by_that_much():
    model, x = deep("none", "relu", depth=5), gaussian(50, 1, 8, 8)
    before = look_at(model, lambda: model(x).square().mean()).scalars["depth_slope"]
    # Up to one factor for all, the gradient of a weight goes down as the weight goes up.
    scaled(model, [2.0**layer for layer in range(6)])
    after = look_at(model, lambda: model(x).square().mean()).scalars["depth_slope"]
    assert after - before == pytest.approx(-math.log10(2), rel=1e-9)


def test_behind_a_layer_of_zeros_there_is_no_gradient():
    model, x = deep("none", "relu", depth=5), gaussian(50, 1, 8, 8)
    scaled(model, [1, 1, 0, 1, 1, 1])
    arrays = look_at(model, lambda: model(x).sum().square() + model(x).sum()).arrays
    assert arrays["gradient_norm"][0] == 0
    assert math.isnan(arrays["cosine"][0])
    assert math.isnan(arrays["update_ratio"][2])


@pytest.mark.parametrize(
    ("model", "data", "precision"),
    [
        ({"kind": "vgg", "width": 0.0625}, {"kind": "digits", "size": 32}, "bfloat16"),
        ({"kind": "lstm", "hidden": 8}, {"kind": "digits", "arrange": "tokens"}, "bfloat16"),
        ({"kind": "deep_linear", "depth": 3}, {"kind": "gaussian"}, "float64"),
    ],
    ids=["vgg", "lstm", "deep_linear"],
)
def test_every_kind_of_model_gives_a_reading(model, data, precision):
    spec = {"model": model, "data": data, "precision": precision, "accumulation": 2, "batch_size": 16}
    learner = Learner(JobSpec.model_validate(spec | {"noise": {"kind": "santurkar"}}), torch.device("cpu"))
    with no_footprints(learner.model) as origin:
        learner.backward(learner.forward(1)[0])
        gradient = tuple(parameter.grad for parameter in learner.model.parameters())
        updated = [p.detach() - 0.1 * (0 if g is None else g) for p, g in zip(origin, gradient, strict=True)]
        plain = lambda ahead=0, dtype=None: learner.plain_replay(1 + ahead, None, dtype)  # noqa: E731
        moment = Moment(1, 0.1, learner.model, plain(), plain, tuple(origin), gradient, tuple(updated))
        reading = GradientsProbe(batches=2).read(moment)
    assert reading.arrays["noise"][2] == 16
    assert all(map(math.isfinite, reading.arrays["gradient_norm"]))
    assert len(reading.layers) == len(reading.arrays["cosine"]) >= 3
    assert set(reading.scalars) >= {"gradient_norm_total", "update_ratio_total", "cosine_total", "depth_slope"}
    assert draw({"": [reading]})


def test_it_leaves_no_footprints_nor_hooks():
    model, x = deep("batch", depth=2), gaussian(8, 1, 8, 8)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    look_at(model, lambda: model(x).square().mean())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_parameters_without_a_gradient_stay_out():
    model, x = linear(), gaussian(4, 5)
    alone = look_at(model, lambda: model(x).square().mean())
    model.unused = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    model.fixed = nn.Parameter(torch.zeros(3, dtype=torch.float64), requires_grad=False)
    assert look_at(model, lambda: model(x).square().mean()) == alone


def test_what_is_not_finite_is_no_scalar():
    model, x = linear(), gaussian(4, 5)
    reading = look_at(model, lambda: model(x).sum() * math.inf)
    assert all(map(math.isfinite, reading.scalars.values()))
    assert math.isnan(reading.arrays["noise"][0])
    assert draw({"": [reading]})


@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_the_figure_is_a_png_however_many_readings_and_layers(count, theme):
    model, x = deep("none", depth=2), gaussian(8, 1, 8, 8)
    readings = [look_at(model, lambda: model(x).square().mean())] * count
    bare = nn.LayerNorm(2)
    nothing = look_at(bare, lambda: bare(torch.tensor([1.0, 2.0])).square().sum())
    assert nothing.layers == ()
    assert draw({"some": readings, "nothing": [nothing] * count}, theme)[:8] == b"\x89PNG\r\n\x1a\n"
