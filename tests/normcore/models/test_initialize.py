import math

import pytest
import torch
from torch import nn

from normcore.models.initialize import Conv2d, Linear, initialize
from normcore.norms.batch import BatchNorm
from normcore.seeds import generator


def net(**factory: object) -> nn.Sequential:
    return nn.Sequential(Conv2d(16, 32, 3, **factory), BatchNorm(32, **factory), Linear(400, 300, **factory))


FANS = {"0": (16 * 9, 32 * 9), "2": (400, 300)}


def test_glorot_is_uniform_up_to_the_root_of_six_over_both_fans():
    model = net()
    initialize(model, init="glorot", seed=0)
    for path, (fan_in, fan_out) in FANS.items():
        weight, bound = model.get_submodule(path).weight, math.sqrt(6 / (fan_in + fan_out))
        assert 0.99 * bound < weight.abs().max() <= bound
        torch.testing.assert_close(weight.std().item(), bound / math.sqrt(3), rtol=0.03, atol=0)


def test_he_is_normal_with_two_over_fan_in():
    model = net()
    initialize(model, init="he", seed=0)
    for path, (fan_in, _) in FANS.items():
        weight = model.get_submodule(path).weight
        torch.testing.assert_close(weight.std().item(), math.sqrt(2 / fan_in), rtol=0.03, atol=0)
        assert weight.abs().max() > 3 * math.sqrt(2 / fan_in)


@pytest.mark.parametrize("init", ["glorot", "he"])
def test_each_weight_has_the_stream_of_its_name_and_biases_are_zero(init):
    model = net()
    initialize(model, init=init, seed=5)
    drawn = torch.empty(300, 400)
    {"glorot": nn.init.xavier_uniform_, "he": nn.init.kaiming_normal_}[init](
        drawn, generator=generator("cpu", 5, "init", "2.weight")
    )
    assert torch.equal(model[2].weight, drawn)
    assert not model[0].bias.any()
    assert not model[2].bias.any()
    assert torch.equal(model[1].weight, torch.ones(32))


def test_values_are_the_same_in_every_precision():
    single, double = net(), net(dtype=torch.float64)
    for model in (single, double):
        initialize(model, init="he", seed=1)
    assert torch.equal(single[0].weight.double(), double[0].weight)


def test_the_global_generator_is_left_alone_also_by_construction():
    before = torch.get_rng_state()
    initialize(net(), init="he", seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_nothing_is_drawn_on_the_meta_device():
    model = nn.Sequential(Linear(10**6, 10**6, device="meta"))
    initialize(model, init="glorot", seed=0)
    assert model[0].weight.is_meta
