"""Lp norms of the paper's section 3.3 against loops over the values, and against batch norm."""

import pytest
import torch
from torch import nn

from normcore.norms.batch import BatchNorm
from normcore.norms.lp import LpNorm
from normcore.refusal import Refusal
from normcore.statistics.recompute import recompute_statistics

EACH_P = ["1", "2", "inf"]


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def lp(p: str, **knobs: float) -> LpNorm:
    return LpNorm(4, p=p, dtype=torch.float64, **knobs)


def twin(p: str, values: list[float]) -> tuple[float, float]:
    mean = sum(values) / len(values)
    if p == "inf":
        return mean, max(abs(value) for value in values)
    return mean, (sum(abs(value) ** int(p) for value in values) / len(values)) ** (1 / int(p))


@pytest.mark.parametrize("p", EACH_P)
def test_subtracts_the_mean_and_divides_by_the_norm_of_before(p):
    x, norm = 1 + 2 * randn(5, 4, 3, 2), lp(p, momentum=0.3, eps=1e-2)
    expected, means, norms = torch.empty_like(x), [], []
    for c in range(4):
        mean, size = twin(p, x[:, c].flatten().tolist())
        expected[:, c] = (x[:, c] - mean) / (size + 1e-2)
        means.append(mean)
        norms.append(size)
    torch.testing.assert_close(norm(x), expected, rtol=1e-12, atol=1e-12)
    running_mean = 0.3 * torch.tensor(means, dtype=torch.float64)
    running_norm = 0.7 + 0.3 * torch.tensor(norms, dtype=torch.float64)
    torch.testing.assert_close(norm.running_mean, running_mean)
    torch.testing.assert_close(norm.running_norm, running_norm)
    assert norm.num_batches_tracked == 1
    evaluated = (x - running_mean.view(4, 1, 1)) / (running_norm.view(4, 1, 1) + 1e-2)
    torch.testing.assert_close(norm.eval()(x), evaluated)


def test_with_p_2_it_is_batch_norm_times_sigma_by_the_root_of_sigma_squared_and_mean_squared():
    x = 1 + 2 * randn(6, 4, 3, 2)
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
    batch, ours = BatchNorm(4, eps=1e-30, dtype=torch.float64), lp("2", eps=1e-30)
    torch.testing.assert_close(ours(x), batch(x) * (var / (var + mean**2)).sqrt(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours(x - mean), batch(x), rtol=1e-12, atol=1e-12)


def test_outputs_fall_with_p():
    x = 1 + 2 * randn(6, 4, 3, 2)
    one, two, largest = (lp(p)(x).abs() for p in EACH_P)
    assert (one > two).all()
    assert (two > largest).all()


@pytest.mark.parametrize("p", EACH_P)
def test_scale_does_not_matter_shift_does_and_the_gradient_is_orthogonal_to_the_weights_before_it(p):
    x, norm = randn(6, 4, 3), lp(p, eps=1e-30)
    torch.testing.assert_close(norm(5 * x), norm(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(norm(-x), -norm(x), rtol=1e-12, atol=1e-12)
    assert (norm(x + 1) - norm(x)).abs().max() > 0.1
    inputs, weight, target = randn(16, 3), randn(4, 3, seed=1).requires_grad_(), randn(16, 4, seed=2)
    (gradient,) = torch.autograd.grad(((norm(inputs @ weight.T) - target) ** 2).sum(), weight)
    assert (gradient * weight).sum(1).abs().max() < 1e-13


@pytest.mark.parametrize("p", EACH_P)
def test_the_gradient_is_that_of_the_formula_written_with_finite_differences(p):
    x = (1 + randn(3, 4, 2)).requires_grad_()
    norm = lp(p)
    nn.init.constant_(norm.weight, 1.7)
    assert torch.autograd.gradcheck(norm, (x,))


@pytest.mark.parametrize("p", EACH_P)
def test_a_channel_of_zeros_has_outputs_and_gradients_of_zero(p):
    x = torch.zeros(5, 4, 2, dtype=torch.float64).requires_grad_()
    y = lp(p)(x)
    (dx,) = torch.autograd.grad((y**2).sum(), x, create_graph=True)
    (ddx,) = torch.autograd.grad(dx.square().sum(), x)
    assert (y == 0).all()
    assert (dx == 0).all()
    assert ddx.isfinite().all()


@pytest.mark.parametrize("p", EACH_P)
@pytest.mark.parametrize("estimator", ["paper", "population"])
def test_recomputed_statistics_pool_means_of_powers_and_average_largest_values(p, estimator):
    norm, batches = lp(p), [step + (1 + step) * randn(3 + 2 * step, 4, 2, seed=step) for step in range(3)]
    recompute_statistics(norm, batches, estimator=estimator)
    for c in range(4):
        parts = [x[:, c].flatten().tolist() for x in batches]
        means, norms = zip(*(twin(p, part) for part in parts), strict=True)
        weights = [len(part) if estimator == "population" else 1 for part in parts]
        mean = sum(w * m for w, m in zip(weights, means, strict=True)) / sum(weights)
        size = sum(w * n for w, n in zip(weights, norms, strict=True)) / sum(weights)
        if estimator == "population" and p != "inf":
            mean, size = twin(p, [value for part in parts for value in part])
        assert norm.running_mean[c].item() == pytest.approx(mean, rel=1e-12)
        assert norm.running_norm[c].item() == pytest.approx(size, rel=1e-12)


def test_a_batch_of_one_is_refused():
    with pytest.raises(Refusal, match="lp norm needs a batch of at least 2 samples") as refused:
        LpNorm(4)(torch.randn(1, 4, 3))
    assert refused.value.code == "batch-of-one"
