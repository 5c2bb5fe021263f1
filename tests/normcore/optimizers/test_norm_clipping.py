"""Clipping by the length of the whole gradient, against torch's own."""

import pytest
import torch
from torch import nn

from normcore.optimizers.norm_clipping import NormClipping


def net(scale: float) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()
    for parameter in model.parameters():
        parameter.grad = scale * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_is_torchs_but_for_its_eps(scale):
    ours, theirs = net(scale), net(scale)
    NormClipping(ours.parameters(), 0.5).clip()
    torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=5e-6, atol=0)


def test_the_length_is_the_limit_and_gradients_within_keep_their_bits():
    model, within, zero = net(10.0), net(1e-3), net(0.0)
    NormClipping(model.parameters(), 0.5).clip()
    assert torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item() == pytest.approx(0.5, rel=1e-12)
    NormClipping(within.parameters(), 0.5).clip()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(within.parameters(), net(1e-3).parameters(), strict=True))
    NormClipping(zero.parameters(), 0.5).clip()
    assert not any(p.grad.any() for p in zero.parameters())
