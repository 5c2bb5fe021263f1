import pytest
import torch
from torch import nn

from normcore.models.block import ACTIVATIONS, Site, block
from normcore.noise.noise import start_step
from normcore.noise.santurkar import SanturkarNoise
from normcore.norms.batch import BatchNorm


def built(placement: str, activation: str = "relu") -> nn.Sequential:
    return block(("linear", nn.Linear(2, 3)), 3, Site(BatchNorm, SanturkarNoise, activation, placement))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("placement", ["before", "after"])
def test_noise_follows_the_norm_and_both_stand_before_or_after_the_activation(placement, activation):
    parts, x = built(placement, activation), torch.randn(8, 2)
    start_step(parts, 0, 0)
    y, act = parts.linear(x), getattr(torch, activation)
    expected = act(parts.noise(parts.norm(y))) if placement == "before" else parts.noise(parts.norm(act(y)))
    torch.testing.assert_close(parts(x), expected)


def test_placement_changes_no_name():
    assert set(dict(built("before").named_modules())) == set(dict(built("after").named_modules()))
