"""Optimizers against the formula in float64, and whom weight decay shrinks."""

import pytest
import torch
from torch import nn

from normcore.menu.optimizers import AdamWSpec, SgdSpec
from normcore.norms.batch import BatchNorm
from normcore.norms.group import GroupNorm
from normcore.spec import MENU

OPTIMIZERS = pytest.mark.parametrize("kind", MENU["optimizer"], ids=lambda kind: kind.__name__)


def build(spec, model):
    return spec.part()(spec, model)


def net():
    return nn.Sequential(nn.Linear(3, 4), BatchNorm(4), nn.Linear(4, 4), GroupNorm(4, num_groups=2), nn.Linear(4, 2))


def decayed(spec, model):
    """The names of the parameters that shrink while their gradients are zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
            parameter.grad = torch.zeros_like(parameter)
    build(spec, model).step()
    return {name for name, parameter in model.named_parameters() if (parameter < 1.0).all()}


@OPTIMIZERS
def test_weight_decay_leaves_the_norms_alone(kind):
    assert decayed(kind(weight_decay=0.1), net()) == {f"{i}.{name}" for i in (0, 2, 4) for name in ("weight", "bias")}


@OPTIMIZERS
def test_weight_decay_shrinks_the_norms_when_asked(kind):
    model = net()
    names = {name for name, _ in model.named_parameters()}
    assert decayed(kind(weight_decay=0.1, decay_norm_parameters=True), model) == names


@OPTIMIZERS
def test_no_weight_decay_shrinks_nothing(kind):
    assert decayed(kind(weight_decay=0.0), net()) == set()


@OPTIMIZERS
def test_every_parameter_is_in_exactly_one_group(kind):
    model = net()
    groups = build(kind(weight_decay=0.1), model).param_groups
    assert sorted(id(p) for group in groups for p in group["params"]) == sorted(id(p) for p in model.parameters())


@OPTIMIZERS
def test_a_model_without_norms_has_no_empty_group(kind):
    assert all(group["params"] for group in build(kind(weight_decay=0.1), nn.Linear(2, 2)).param_groups)


def gradients(num_steps):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(5, generator=generator, dtype=torch.float64) for _ in range(num_steps)]


def weights_after(spec, model, grads):
    optimizer = build(spec, model)
    for grad in grads:
        model.weight.grad = grad.reshape(1, 5).clone()
        optimizer.step()
    return model.weight.detach().reshape(5)


def line():
    model = nn.Linear(5, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.arange(1.0, 6.0).reshape(1, 5))
    return model


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_its_formula(nesterov):
    spec = SgdSpec(lr=0.1, momentum=0.9, nesterov=nesterov, weight_decay=0.01)
    w, v = torch.arange(1.0, 6.0, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    for grad in gradients(7):
        d = grad + 0.01 * w
        v = 0.9 * v + d
        w = w - 0.1 * (d + 0.9 * v if nesterov else v)
    torch.testing.assert_close(weights_after(spec, line(), gradients(7)), w, rtol=1e-14, atol=0)


def test_adamw_is_its_formula():
    spec = AdamWSpec(lr=0.1, beta1=0.8, beta2=0.95, eps=1e-6, weight_decay=0.01)
    w = torch.arange(1.0, 6.0, dtype=torch.float64)
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    for t, grad in enumerate(gradients(7), start=1):
        m, v = 0.8 * m + 0.2 * grad, 0.95 * v + 0.05 * grad**2
        w = w - 0.1 * 0.01 * w - 0.1 * (m / (1 - 0.8**t)) / ((v / (1 - 0.95**t)).sqrt() + 1e-6)
    torch.testing.assert_close(weights_after(spec, line(), gradients(7)), w, rtol=1e-13, atol=0)


@OPTIMIZERS
def test_found_inf_keeps_the_parameters(kind):
    model = line()
    optimizer = build(kind(), model)
    optimizer.found_inf = torch.ones(())
    model.weight.grad = torch.full((1, 5), torch.nan, dtype=torch.float64)
    optimizer.step()
    assert model.weight.tolist() == [[1.0, 2.0, 3.0, 4.0, 5.0]]
