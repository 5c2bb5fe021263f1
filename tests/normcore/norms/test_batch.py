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


def twin_of_estimates(batches: list[torch.Tensor], momentum: float) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Every estimate as its definition says it, value by value."""
    values = [x.transpose(0, 1).flatten(1) for x in batches]
    means = [v.sum(1) / v.shape[1] for v in values]
    unbiased = [((v - m[:, None]) ** 2).sum(1) / (v.shape[1] - 1) for v, m in zip(values, means, strict=True)]
    mean, var = torch.zeros_like(means[0]), torch.ones_like(means[0])
    for m, v in zip(means, unbiased, strict=True):
        mean, var = (1 - momentum) * mean + momentum * m, (1 - momentum) * var + momentum * v
    together = torch.cat(values, 1)
    center = together.sum(1) / together.shape[1]
    return {
        "ema": (mean, var),
        "paper": (sum(means) / len(batches), sum(unbiased) / len(batches)),
        "population": (center, ((together - center[:, None]) ** 2).sum(1) / together.shape[1]),
    }


@pytest.mark.parametrize("estimator", ["ema", "paper", "population"])
@pytest.mark.parametrize("sizes", [(5,), (4, 4, 4), (2, 16, 3, 7)], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_each_estimate_is_its_definition_also_for_batches_of_different_sizes(estimator, sizes, masked):
    batches = [step + (1 + step) * randn(size, 3, 2, 2, seed=step) for step, size in enumerate(sizes)]
    norm = BatchNorm(3, momentum=0.3, estimator=estimator, dtype=torch.float64)
    for x in batches:
        norm(x, mask=torch.ones(len(x), 2, 2, dtype=torch.bool) if masked else None)
    mean, var = twin_of_estimates(batches, 0.3)[estimator]
    torch.testing.assert_close(norm.running_mean, mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(norm.running_var, var, rtol=1e-12, atol=1e-12)
    assert norm.num_batches_tracked == len(sizes)
    x = randn(4, 3, 2, 2, seed=9)
    expected = (x - mean.view(3, 1, 1)) / (var.view(3, 1, 1) + norm.eps).sqrt()
    torch.testing.assert_close(norm.eval()(x), expected, rtol=1e-11, atol=1e-11)


def test_paper_is_torch_with_a_cumulative_average():
    ours, theirs = BatchNorm(4, estimator="paper", dtype=torch.float64), nn.BatchNorm2d(4, momentum=None).double()
    for step in range(4):
        x = step + randn(3 + step, 4, 2, 2, seed=step)
        torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()))


@pytest.mark.parametrize("estimator", ["ema", "paper", "population"])
def test_after_a_reset_only_new_batches_count_and_state_dicts_are_torchs(estimator):
    used, fresh = (BatchNorm(4, estimator=estimator, dtype=torch.float64) for _ in range(2))
    used(9 + randn(7, 4, 2, 2))
    used.reset_statistics()
    for step in (1, 2):
        x = randn(2 + step, 4, 2, 2, seed=step)
        assert torch.equal(used(x), fresh(x))
    assert used.state_dict().keys() == nn.BatchNorm2d(4).state_dict().keys()
    for name, value in used.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[name]), name


@pytest.mark.parametrize("estimator", ["ema", "paper", "population"])
def test_a_state_that_was_loaded_goes_on_as_if_it_had_never_been_saved(estimator):
    whole, other = (BatchNorm(4, estimator=estimator, dtype=torch.float64) for _ in range(2))
    other(randn(99, 4, 2, 2))
    for step in range(3):
        whole(step + randn(6, 4, 2, 2, seed=step))
    other.load_state_dict(nn.BatchNorm2d(4).double().state_dict())
    other.load_state_dict(whole.state_dict())
    last = randn(6, 4, 2, 2, seed=5)
    for norm in (whole, other):
        norm(last)
    torch.testing.assert_close(other.running_var, whole.running_var, rtol=1e-14, atol=0)
    torch.testing.assert_close(other.running_mean, whole.running_mean, rtol=1e-14, atol=0)


@pytest.mark.parametrize("estimator", ["ema", "paper", "population"])
def test_a_mask_leaves_the_real_tokens_as_if_they_stood_alone(estimator):
    x, norm = 3 + randn(4, 3, 5), BatchNorm(3, estimator=estimator, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    alone = BatchNorm(3, estimator=estimator, dtype=torch.float64)
    x = torch.where(mask[:, None], x, torch.nan).requires_grad_()
    real = x.detach().transpose(0, 1)[:, mask].T.requires_grad_()
    y, expected = norm(x, mask), alone(real)
    torch.testing.assert_close(y.transpose(0, 1)[:, mask].T, expected)
    assert (y[~mask[:, None].expand_as(y)] == 0).all()
    torch.testing.assert_close(dict(norm.state_dict()), dict(alone.state_dict()))
    g = randn(4, 3, 5, seed=3)
    y.backward(g)
    expected.backward(g.transpose(0, 1)[:, mask].T)
    torch.testing.assert_close(x.grad.transpose(0, 1)[:, mask].T, real.grad)
    assert (x.grad[~mask[:, None].expand_as(y)] == 0).all()
    torch.testing.assert_close(norm.weight.grad, alone.weight.grad)
    z = norm.eval()(x.detach(), mask)
    torch.testing.assert_close(z.transpose(0, 1)[:, mask].T, alone.eval()(real.detach()))


@pytest.mark.parametrize("estimator", ["ema", "paper", "population"])
def test_a_batch_without_a_real_token_gives_zeros_and_moves_no_statistic(estimator):
    norm, mask = BatchNorm(3, estimator=estimator), torch.zeros(4, 5, dtype=torch.bool)
    norm(2 + torch.randn(4, 3, 5))
    mean, var = norm.running_mean.clone(), norm.running_var.clone()
    x = torch.full((4, 3, 5), torch.nan, requires_grad=True)
    y = norm(x, mask)
    y.sum().backward()
    assert (y == 0).all()
    assert (x.grad == 0).all()
    assert torch.equal(norm.running_mean, mean)
    assert torch.equal(norm.running_var, var)
