"""The curvature probe against Hessians that are written down, and against torch's own."""

import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional

from normcore.menu.smoothness_probes import CurvatureProbeSpec
from normcore.norms.batch import BatchNorm
from normcore.norms.batch_renorm import BatchRenorm
from normcore.probes.curvature import GRID, CurvatureProbe
from normcore.probes.curvature_figure import draw
from normcore.probes.landscape import LandscapeProbe
from normcore.probes.look import look
from normcore.probes.sheet import DARK


class Point(nn.Module):
    """A point in the plane of parameters, with some loss of it."""

    def __init__(self, theta, loss):
        super().__init__()
        self.theta = nn.Parameter(torch.as_tensor(theta, dtype=torch.float64))
        self.loss = loss

    def forward(self):
        return self.loss(self.theta)


def read(model, replay, lr=0.1, **knobs):
    return look(CurvatureProbe(**knobs), model, replay, lr=lr, step=7)


def quadratic(hessian, theta):
    return Point(theta, lambda theta: 0.5 * theta @ hessian @ theta)


def random_quadratic(size=9, seed=3):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size, generator=generator, dtype=torch.float64)
    hessian = root + root.T
    return hessian, quadratic(hessian, torch.randn(size, generator=generator, dtype=torch.float64))


def test_on_a_quadratic_everything_is_its_closed_form():
    hessian, model = random_quadratic()
    g = hessian @ model.theta.detach()
    reading = read(model, model, lr=0.01, eigenvalues=4)
    values = torch.linalg.eigvalsh(hessian).flip(0).tolist()
    sharpness = float(g @ hessian @ g / (g @ g))
    assert (reading.probe, reading.step) == ("curvature", 7)
    assert reading.arrays["eigenvalues"] == pytest.approx(values[:4], rel=1e-9)
    assert reading.arrays["eigenvalues_times_lr"] == pytest.approx([0.01 * value for value in values[:4]], rel=1e-9)
    assert max(reading.arrays["eigenvalue_errors"]) < 1e-8
    assert reading.arrays["gradient_curvature"] == pytest.approx([float((hessian @ g).norm() / g.norm())], rel=1e-12)
    expected = {
        "eigenvalue_max": values[0],
        "eigenvalue_max_times_lr": 0.01 * values[0],
        "eigenvalue_min": values[-1],
        "sharpness": sharpness,
        "sharpness_times_lr": 0.01 * sharpness,
    }
    assert {name: reading.scalars[name] for name in expected} == pytest.approx(expected, rel=1e-9)


def test_the_trace_of_a_diagonal_hessian_is_exact_and_has_no_error():
    spectrum = torch.tensor([5.0, -1.0, 0.0, 2.5, 7.0], dtype=torch.float64)
    model = quadratic(spectrum.diag(), torch.ones(5))
    reading = read(model, model, samples=5)
    assert reading.scalars["trace"] == pytest.approx(13.5, rel=1e-12)
    assert reading.arrays["trace_samples"] == pytest.approx([13.5] * 5, rel=1e-12)
    assert reading.arrays["trace_error"][0] == pytest.approx(0.0, abs=1e-12)


def test_the_trace_is_the_mean_of_its_samples_within_its_standard_error():
    hessian, model = random_quadratic(30)
    reading = read(model, model, samples=200, iterations=2, eigenvalues=1)
    samples = torch.tensor(reading.arrays["trace_samples"], dtype=torch.float64)
    error = reading.arrays["trace_error"][0]
    assert reading.scalars["trace"] == pytest.approx(float(samples.mean()), rel=1e-12)
    # Of random signs the variance of z^T H z is twice the sum of the squares off the diagonal.
    deviation = (2 * (hessian - hessian.diag().diag()).square().sum()).sqrt()
    assert error == pytest.approx(float(deviation) / math.sqrt(200), rel=0.2)
    assert abs(reading.scalars["trace"] - float(hessian.trace())) < 4 * error


def test_the_density_has_the_moments_of_the_spectrum():
    spectrum = torch.linspace(-1, 6, 25, dtype=torch.float64)
    model = quadratic(spectrum.diag(), torch.ones(25))
    reading = read(model, model, density_samples=2, iterations=8)
    grid, share = (torch.tensor(reading.arrays[name], dtype=torch.float64) for name in ("density_grid", "density"))
    assert len(grid) == len(share) == GRID
    moments = [float(torch.trapezoid(share * grid**power, grid)) for power in range(3)]
    assert moments == pytest.approx([1, 2.5, float(spectrum.square().mean()) + 0.07**2], rel=1e-3)


def mlp(norm):
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(3, 4), norm(4), nn.Tanh(), nn.Linear(4, 3)).double()
    x, y = torch.randn(8, 3, dtype=torch.float64), torch.arange(8) % 3
    return model, lambda: functional.cross_entropy(model(x), y), x, y


@pytest.mark.parametrize("bn_mode", ["batch", "frozen"])
def test_of_an_mlp_with_batch_norm_it_is_torchs_hessian(bn_mode):
    model, replay, x, y = mlp(BatchNorm)
    names, parameters = zip(*model.named_parameters(), strict=True)
    sizes = [parameter.numel() for parameter in parameters]

    def of(flat):
        pieces = zip(names, parameters, flat.split(sizes), strict=True)
        given = {name: piece.view_as(parameter) for name, parameter, piece in pieces}
        return functional.cross_entropy(torch.func.functional_call(model, given, (x,)), y)

    flat = torch.cat([parameter.detach().flatten() for parameter in parameters])
    reading = read(model, replay, eigenvalues=5, iterations=60, samples=300, bn_mode=bn_mode)
    model[1].train(bn_mode == "batch")
    hessian, g = torch.autograd.functional.hessian(of, flat), torch.autograd.functional.jacobian(of, flat)
    values = torch.linalg.eigvalsh(hessian).flip(0)
    # Directions that change nothing, as the scale of a weight before a norm, are zeros many times over.
    assert reading.arrays["eigenvalues"] == pytest.approx(values[:5].tolist(), rel=1e-7)
    assert reading.scalars["eigenvalue_min"] == pytest.approx(float(values[-1]), rel=1e-7)
    assert reading.scalars["sharpness"] == pytest.approx(float(g @ hessian @ g / (g @ g)), rel=1e-9)
    trace, error = reading.scalars["trace"], reading.arrays["trace_error"][0]
    assert abs(trace - float(hessian.trace())) < 4 * error
    deviation = (2 * (hessian - hessian.diag().diag()).square().sum()).sqrt()
    assert error == pytest.approx(float(deviation) / math.sqrt(300), rel=0.2)
    assert reading.facts == {"bn_mode": bn_mode, "precision": "float64"}


def test_gradient_curvature_is_the_effective_beta_of_step_sizes_near_zero():
    model, replay, *_ = mlp(BatchNorm)
    probe = LandscapeProbe(low=1e-5, high=2e-5, points=2)
    beta = look(probe, model, replay, lr=0.1).scalars["effective_beta"]
    assert read(model, replay).arrays["gradient_curvature"][0] == pytest.approx(beta, rel=1e-4)


def test_facts_say_what_norms_that_remember_are_held_to():
    model, replay, *_ = mlp(BatchRenorm)
    assert read(model, replay).facts["held"] == "what norms remember of earlier batches"
    assert "held" not in read(model, replay, bn_mode="frozen").facts


def test_float64_is_more_exact_than_float32():
    spectrum = torch.tensor([1.0, 1e-7, 2.0])
    model = Point(torch.ones(3), lambda theta: 0.5 * (theta.square() * spectrum.to(theta)).sum()).float()
    coarse, fine = (read(model, model, precision=precision) for precision in ("training", "float64"))
    assert (coarse.facts["precision"], fine.facts["precision"]) == ("float32", "float64")
    expected = [2.0, 1.0, float(spectrum[1])]
    assert fine.arrays["eigenvalues"] == pytest.approx(expected, rel=1e-7)
    assert coarse.arrays["eigenvalues"] == pytest.approx(expected, rel=1e-5, abs=1e-6)
    assert model.theta.dtype == torch.float32


def test_it_leaves_the_model_as_it_was_and_reads_the_same_again():
    model, replay, *_ = mlp(BatchNorm)
    replay().backward()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gradients = [parameter.grad for parameter in model.parameters()]
    assert read(model, replay) == read(model, replay)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is gradient for p, gradient in zip(model.parameters(), gradients, strict=True))


def test_a_gradient_of_zero_has_curvature_but_no_sharpness():
    model = quadratic(torch.eye(3, dtype=torch.float64), torch.zeros(3))
    reading = read(model, model)
    assert reading.scalars["eigenvalue_max"] == pytest.approx(1)
    assert {"sharpness", "sharpness_times_lr"}.isdisjoint(reading.scalars)


def test_a_loss_that_is_not_finite_gives_no_scalars_and_the_same_arrays():
    model = Point([0.0, 1.0], lambda theta: theta.abs().sqrt().sum())
    reading, other = read(model, model), read(*[quadratic(torch.eye(2, dtype=torch.float64), torch.ones(2))] * 2)
    assert reading.scalars == {}
    lengths = [{name: len(values) for name, values in each.arrays.items()} for each in (reading, other)]
    assert lengths[0] == lengths[1]
    assert png_size(draw({"": [reading]}))


@pytest.mark.parametrize(("knobs", "products"), [({}, 28), ({"samples": 5, "density_samples": 3, "iterations": 4}, 15)])
def test_it_makes_as_many_products_as_it_says(knobs, products, monkeypatch):
    asked = []
    own = CurvatureProbe.read.__globals__["hessian_of"]

    def counting(*args, **more):
        scope = own(*args, **more)

        class Counting:
            def __enter__(self):
                hessian = scope.__enter__()
                product = hessian.product
                hessian.product = lambda v: (asked.append(None), product(v))[1]
                return hessian

            def __exit__(self, *error):
                return scope.__exit__(*error)

        return Counting()

    monkeypatch.setattr("normcore.probes.curvature.hessian_of", counting)
    _, model = random_quadratic(30)
    read(model, model, **knobs)
    assert len(asked) == products
    assert CurvatureProbe(**knobs).cost(model) == 1 + 3.5 * products


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        (
            {"eigenvalues": 9, "iterations": 8},
            "eigenvalues must be at most iterations, got eigenvalues 9 and iterations 8",
        ),
        (
            {"density_samples": 3, "samples": 2},
            "density_samples must be at most samples, got density_samples 3 and samples 2; raise samples, or lower",
        ),
    ],
)
def test_knobs_that_do_not_fit_are_refused(knobs, said):
    with pytest.raises(ValidationError, match=said):
        CurvatureProbeSpec(**knobs)


def test_it_holds_a_copy_of_the_parameters_per_iteration():
    assert CurvatureProbeSpec(iterations=50).copies - CurvatureProbeSpec(iterations=20).copies == 30


def test_the_defaults_of_the_probe_are_those_of_the_menu():
    assert CurvatureProbe() == CurvatureProbe(**CurvatureProbeSpec().knobs())


def png_size(png):
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


@pytest.mark.parametrize("count", [0, 1, 5])
def test_the_figure_is_a_png_however_many_readings_and_trainings(count):
    _, model = random_quadratic()
    readings = [read(model, model)] * count
    arms = {"batch": readings, "none": []} if count == 5 else {"": readings}
    width, height = png_size(draw(arms, DARK))
    assert width > 600 * len(arms) ** 0.5
    assert height > 600
