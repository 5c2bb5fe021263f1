"""Which layer is named."""

import pytest
import torch
from torch import nn

from normcore.divergence import first_nonfinite_layer


def net():
    return nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.BatchNorm1d(3), nn.ReLU()), nn.Linear(3, 2))


def layer_of(model, x=None):
    return first_nonfinite_layer(model, lambda: model(torch.randn(4, 2) if x is None else x))


@pytest.mark.parametrize("path", ["0", "1.0", "2"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_the_layer_of_a_parameter_that_is_not_finite(path, value):
    model = net()
    with torch.no_grad():
        model.get_submodule(path).bias[1] = value
    assert layer_of(model) == path


def test_the_first_in_the_order_of_the_forward_pass_not_of_the_names():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.late, self.early = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            return self.late(self.early(x))

    model = Backwards()
    with torch.no_grad():
        model.late.bias.fill_(torch.nan)
        model.early.bias.fill_(torch.nan)
    assert layer_of(model) == "early"


def test_the_layer_of_an_output_that_is_not_finite():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert layer_of(model, torch.full((1, 2), torch.nan)) == "0"


def test_none_where_all_is_finite_and_no_hook_stays():
    model = net()
    assert layer_of(model) is None
    assert all(not module._forward_hooks for module in model.modules())


def test_an_error_in_the_replay_takes_the_hooks_away():
    model = net()
    with pytest.raises(RuntimeError, match="shapes"):
        layer_of(model, torch.ones(1, 5))
    assert all(not module._forward_hooks for module in model.modules())
