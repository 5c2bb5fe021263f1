"""Frozen statistics: those of evaluation, in training, until they are thawed."""

import copy

import pytest
import torch
from torch import nn

from normcore.norms.batch import BatchNorm
from normcore.refusal import Refusal
from normcore.statistics.freeze import freeze_statistics


@pytest.fixture(params=[nn.BatchNorm1d, BatchNorm])
def model(request):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), request.param(4), nn.Tanh(), nn.Linear(4, 2))
    model[1].running_mean += 1
    model[1].running_var *= 3
    return model


def test_training_normalizes_as_evaluation_does_and_moves_nothing_also_for_a_single_sample(model):
    x, before = torch.randn(1, 3), {name: value.clone() for name, value in model.named_buffers()}
    expected = model.eval()(x)
    with freeze_statistics(model) as frozen:
        torch.testing.assert_close(model.train()(x), expected)
        assert model.training
        assert model[1].training
    assert frozen.layers == ("1",)
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())


def test_gamma_and_beta_still_learn_and_a_sample_does_not_see_the_others(model):
    x = torch.randn(5, 3)
    freeze_statistics(model)
    model.train()
    torch.testing.assert_close(model(x)[:1], model(x[:1]))
    model(x).sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model[1].parameters())


def test_thawed_it_is_as_it_was(model):
    x, twin = torch.randn(5, 3), copy.deepcopy(model)
    frozen = freeze_statistics(model)
    model(x)
    frozen.thaw()
    frozen.thaw()
    assert torch.equal(model(x), twin(x))
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), twin.buffers(), strict=True))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_an_error_in_a_pass_leaves_the_mode_as_it_was(model):
    freeze_statistics(model)
    with pytest.raises((RuntimeError, Refusal)):
        model[1](torch.randn(5, 7))
    assert model[1].training


def test_a_copy_is_frozen_too(model):
    freeze_statistics(model)
    double = copy.deepcopy(model)
    x = torch.randn(1, 3)
    torch.testing.assert_close(double.train()(x), double.eval()(x))
