"""Mean and variance per channel of what modules give."""

import pytest
import torch
from torch import nn

from normcore.probes.channel_taps import tapped


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def alone(_):
    pass


def test_several_passes_count_as_one():
    model, x = nn.Sequential(nn.BatchNorm2d(3, affine=False).eval()).double(), normal(8, 3, 4, 4) + 5
    with tapped(model, [model[0], None], alone) as (tap, empty):
        for part in x.split((2, 6)):
            model(part)
    mean, var = tap.mean_and_var()
    y = model(x)
    torch.testing.assert_close(mean, y.mean((0, 2, 3)))
    torch.testing.assert_close(var, y.var((0, 2, 3), correction=0))
    assert empty.mean_and_var() is None
    assert not model._forward_pre_hooks
    assert not model[0]._forward_hooks


@pytest.mark.parametrize("last", [True, False])
def test_channels_are_found_and_padding_is_left_out(last):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4) if last else nn.Identity()

        def forward(self, x, mask):
            return self.layer(x)

    model, mask = Net().double(), torch.tensor([[True, True, False], [True, False, False]])
    x = normal(2, 3, 4) if last else normal(2, 4, 3)
    with tapped(model, [model.layer], alone) as (tap,):
        y = model(x, mask=mask).detach()
    real = (y if last else y.mT)[mask]
    mean, var = tap.mean_and_var()
    torch.testing.assert_close(mean, real.mean(0))
    torch.testing.assert_close(var, real.var(0, correction=0))


def test_sums_are_averaged_over_devices_when_the_scope_is_left():
    model, x, other = nn.Sequential(nn.Identity()), normal(4, 2), 3 + normal(4, 2)

    def average(tensors):
        values = torch.stack([torch.ones(2).double(), other.mean(0), other.square().mean(0)]) * 4
        tensors[0].add_(values).div_(2)

    with tapped(model, [model[0]], average) as (tap,):
        model(x)
    mean, var = tap.mean_and_var()
    torch.testing.assert_close(mean, torch.cat([x, other]).mean(0))
    torch.testing.assert_close(var, torch.cat([x, other]).var(0, correction=0))
