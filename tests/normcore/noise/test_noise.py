import copy

import pytest
import torch
from torch import nn

from normcore.noise.noise import Noise, start_step
from normcore.noise.none import NoNoise
from normcore.noise.santurkar import SanturkarNoise
from normcore.seeds import stream_seed


def model() -> nn.Sequential:
    return nn.Sequential(SanturkarNoise(3), nn.Sequential(nn.Linear(3, 3), SanturkarNoise(3)), NoNoise(3))


def test_layers_draw_from_streams_of_their_own_in_the_order_of_the_model():
    net = model()
    start_step(net, 11, 4)
    layers = [layer for layer in net.modules() if isinstance(layer, Noise) and layer.draws]
    assert [layer.step_seed for layer in layers] == [stream_seed(11, "noise", index, 4) for index in range(2)]
    x = torch.ones(64, 3)
    assert not torch.equal(layers[0](x), layers[1](x))


def test_same_step_same_draw_however_often_and_whatever_came_between():
    net, x = model(), torch.randn(8, 3)
    start_step(net, 0, 7)
    first = net(x)
    assert torch.equal(net(x), first)
    start_step(net, 0, 8)
    assert not torch.equal(net(x), first)
    start_step(net, 1, 7)
    assert not torch.equal(net(x), first)
    torch.rand(100)
    start_step(net, 0, 7)
    assert torch.equal(net(x), first)


def test_a_copy_draws_what_the_model_draws():
    net, x = model(), torch.randn(8, 3)
    start_step(net, 0, 7)
    twin = copy.deepcopy(net)
    assert torch.equal(twin(x), net(x))
    start_step(net, 0, 8)
    assert not torch.equal(twin(x), net(x))
    start_step(twin, 0, 8)
    assert torch.equal(twin(x), net(x))


def test_the_state_of_a_model_holds_nothing_of_the_noise():
    assert set(model().state_dict()) == {"1.0.weight", "1.0.bias"}


def test_the_global_generator_is_left_alone():
    net = model()
    before = torch.get_rng_state()
    start_step(net, 0, 0)
    net(torch.ones(2, 3))
    assert torch.equal(torch.get_rng_state(), before)


def test_training_without_a_step_says_what_to_call():
    with pytest.raises(RuntimeError, match=r"must know its step, got none; call .*start_step\(model, seed, step\)"):
        model()(torch.ones(2, 3))


def test_a_model_without_noise_needs_no_call_and_takes_it():
    start_step(nn.Linear(2, 2), 0, 0)
    none, x = NoNoise(3), torch.ones(2, 3)
    assert none(x) is x
