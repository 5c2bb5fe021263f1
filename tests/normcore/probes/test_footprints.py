"""What leaving no footprints means, for any model."""

import pytest
import torch
from torch import nn

from normcore.probes.footprints import no_footprints


def test_a_backward_pass_inside_neither_adds_to_nor_writes_into_the_gradients():
    model = nn.Linear(2, 1)
    model(torch.ones(1, 2)).sum().backward()
    gradient = model.weight.grad
    with no_footprints(model):
        assert model.weight.grad is None
        (3 * model(torch.ones(1, 2)).sum()).backward()
        assert model.weight.grad.tolist() == [[3.0, 3.0]]
    assert model.weight.grad is gradient
    assert gradient.tolist() == [[1.0, 1.0]]


def test_it_yields_a_copy_of_the_parameters_in_their_order():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    with no_footprints(model) as saved:
        assert all(torch.equal(copy, p) for copy, p in zip(saved, model.parameters(), strict=True))
        assert all(copy.data_ptr() != p.data_ptr() for copy, p in zip(saved, model.parameters(), strict=True))


def test_channels_last_parameters_come_back_in_their_memory_format():
    model = nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)
    before = model.weight.detach().clone()
    with no_footprints(model), torch.no_grad():
        model.weight.zero_()
    assert torch.equal(model.weight, before)
    assert model.weight.is_contiguous(memory_format=torch.channels_last)


def test_random_draws_inside_are_not_felt_outside():
    model = nn.Linear(1, 1)
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    with no_footprints(model):
        torch.rand(100)
    assert torch.equal(torch.rand(2), expected)


def test_an_error_inside_restores_and_passes_through():
    model = nn.BatchNorm1d(3)

    def fail():
        with no_footprints(model):
            model(torch.randn(4, 3))
            model.eval()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert model.training
    assert int(model.num_batches_tracked) == 0
    assert model.running_mean.tolist() == [0.0, 0.0, 0.0]
