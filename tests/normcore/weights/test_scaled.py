import math

import pytest
import torch
from torch import nn

from normcore.build import build_model
from normcore.refusal import Refusal
from normcore.spec import JobSpec
from normcore.weights.scaled import GAINS, ScaledStandardization, apply
from normcore.weights.standardized import WeightStandardization
from normcore.weights.weight import maps

W = torch.randn(5, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.3


def scaled(weight, **knobs):
    return ScaledStandardization(weight, **knobs)(weight)


def test_each_unit_has_mean_zero_and_the_norm_gamma_times_its_gain():
    """Identity 11."""
    method = ScaledStandardization(W, gamma=1.5)
    with torch.no_grad():
        method.gain.copy_(torch.arange(1.0, 6.0))
    y = method(W)
    assert y.mean((1, 2, 3)).abs().max() < 1e-14
    torch.testing.assert_close(y.flatten(1).norm(dim=1), 1.5 * torch.arange(1.0, 6.0, dtype=torch.float64))


def test_is_the_formula_with_its_floor():
    for factor, eps in ((1.0, 1e-4), (1e-4, 1e-4), (1.0, 0.9)):
        weight = factor * W
        rows = []
        for values in weight:
            mean = sum(values.flatten().tolist()) / 18
            variance = sum((value - mean) ** 2 for value in values.flatten().tolist()) / 18
            rows.append((values - mean) / math.sqrt(max(18 * variance, eps)))
        torch.testing.assert_close(scaled(weight, eps=eps), torch.stack(rows))


def test_is_standardized_over_the_root_of_n():
    torch.testing.assert_close(scaled(1e3 * W), WeightStandardization("timm")(1e3 * W) / math.sqrt(18))


@pytest.mark.parametrize("activation", GAINS)
def test_gains_undo_what_the_activation_does_to_the_variance(activation):
    """By the trapezoid rule, against a closed form and a quadrature."""
    z = torch.linspace(-12, 12, 2_000_001, dtype=torch.float64)
    density = (-z * z / 2).exp() / math.sqrt(2 * math.pi)
    values = activation()(z)
    mean = torch.trapezoid(density * values, z)
    variance = torch.trapezoid(density * (values - mean) ** 2, z)
    assert GAINS[activation] ** 2 * variance.item() == pytest.approx(1.0, abs=1e-10)


def test_the_variance_of_signals_survives_twelve_layers():
    torch.manual_seed(0)
    hidden = [256] * 12
    spec = {"model": {"kind": "mlp", "hidden": hidden}, "norm": {"kind": "none"}, "data": {"kind": "digits"}}
    variances = {}
    for weight in ("none", "scaled"):
        model = build_model(JobSpec.model_validate(spec | {"weight": {"kind": weight}}))
        # What stands before the last activation.
        model.blocks[-1].activation = nn.Identity()
        variances[weight] = model.blocks(torch.randn(256, 1024)).var().item()
    assert 0.6 < variances["scaled"] < 1.4
    assert variances["none"] < 0.01


@pytest.mark.parametrize(("activation", "kind"), [("relu", nn.ReLU), ("sigmoid", nn.Sigmoid), ("tanh", nn.Tanh)])
def test_every_map_but_the_first_has_the_gain_of_the_activation_before_it(activation, kind):
    model = {"kind": "mlp", "hidden": [8, 8, 8], "activation": activation}
    spec = {"model": model, "data": {"kind": "digits"}, "weight": {"kind": "scaled"}}
    layers = maps(build_model(JobSpec.model_validate(spec))).values()
    assert [layer.parametrizations.weight[0].gamma for layer in layers] == [1.0, GAINS[kind], GAINS[kind]]


def test_without_an_activation_the_gain_is_one():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    apply(model)
    assert model[1].parametrizations.weight[0].gamma == 1.0


def test_a_single_weight_in_a_unit_is_refused():
    with pytest.raises(Refusal, match="scaled weight standardization needs more than one weight") as refused:
        apply(nn.Sequential(nn.Linear(1, 3)))
    assert refused.value.code == "fan-in-of-one"
