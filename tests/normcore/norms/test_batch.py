import pytest
import torch
from torch import nn

from normcore.norms.batch import BatchNorm
from normcore.norms.instance import InstanceNorm
from normcore.refusal import Refusal


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_trains_and_evaluates_like_torch_and_shares_its_state():
    ours, theirs = BatchNorm(4, momentum=0.3, dtype=torch.float64), nn.BatchNorm2d(4, momentum=0.3).double()
    for step in range(3):
        x = 2 + randn(5, 4, 3, 2, seed=step)
        torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()))
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_running_statistics_move_towards_the_mean_and_the_unbiased_variance():
    norm, x = BatchNorm(4, momentum=0.25, dtype=torch.float64), 3 + 2 * randn(6, 4, 5, 5)
    norm(x)
    torch.testing.assert_close(norm.running_mean, 0.25 * x.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, 0.75 + 0.25 * x.var((0, 2, 3), correction=1))
    assert norm.num_batches_tracked == 1


def test_evaluation_uses_running_statistics_and_moves_nothing():
    norm, x = BatchNorm(4, dtype=torch.float64).eval(), randn(1, 4, 2, 2)
    norm.running_mean += 1
    before = {name: tensor.clone() for name, tensor in norm.state_dict().items()}
    torch.testing.assert_close(norm(x), (x - 1) / (1 + norm.eps) ** 0.5)
    torch.testing.assert_close(dict(norm.state_dict()), before, rtol=0, atol=0)


def test_gamma_and_beta_can_undo_it():
    norm, x = BatchNorm(4, dtype=torch.float64), 3 + 2 * randn(6, 4, 5, 5)
    with torch.no_grad():
        norm.weight.copy_((x.var((0, 2, 3), correction=0) + norm.eps).sqrt())
        norm.bias.copy_(x.mean((0, 2, 3)))
    torch.testing.assert_close(norm(x), x, rtol=0, atol=1e-13)


def test_is_instance_norm_of_a_single_sample_that_holds_all_pixels_of_the_batch():
    x = randn(6, 4, 5, 5)
    as_one = x.transpose(0, 1).reshape(1, 4, 30, 5)
    y = InstanceNorm(4, dtype=torch.float64)(as_one).reshape(4, 6, 5, 5).transpose(0, 1)
    torch.testing.assert_close(BatchNorm(4, dtype=torch.float64)(x), y)


def test_the_scale_of_the_weights_before_it_does_not_matter_and_their_gradient_is_orthogonal_to_them():
    x, weight, norm = randn(16, 3), randn(4, 3, seed=1).requires_grad_(), BatchNorm(4, eps=1e-30, dtype=torch.float64)
    target = randn(16, 4, seed=2)
    (gradient,) = torch.autograd.grad(((norm(x @ weight.T) - target) ** 2).sum(), weight)
    scaled = (5 * weight).detach().requires_grad_()
    (scaled_gradient,) = torch.autograd.grad(((norm(x @ scaled.T) - target) ** 2).sum(), scaled)
    torch.testing.assert_close(norm(x @ scaled.T), norm(x @ weight.T))
    torch.testing.assert_close(scaled_gradient, gradient / 5)
    assert (gradient * weight).sum(1).abs().max() < 1e-13


@pytest.mark.parametrize("shape", [(1, 4), (1, 4, 8, 8)])
def test_a_batch_of_one_is_refused_in_training_also_on_maps(shape):
    norm, x = BatchNorm(4), torch.randn(shape)
    before = norm.num_batches_tracked.clone()
    with pytest.raises(Refusal, match="batch of at least 2 samples in training, got 1; take a larger batch") as refused:
        norm(x)
    assert refused.value.code == "batch-of-one"
    assert norm.num_batches_tracked == before
    assert norm.eval()(x).shape == shape
