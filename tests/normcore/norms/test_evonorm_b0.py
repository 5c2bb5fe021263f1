import math

import pytest
import torch
from torch import Tensor, nn

from normcore.norms.batch import BatchNorm
from normcore.norms.evonorm_b0 import EvoNormB0
from normcore.refusal import Refusal
from normcore.statistics.recompute import recompute_statistics


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bare(num_features: int, **knobs: float) -> EvoNormB0:
    return EvoNormB0(num_features, affine=False, dtype=torch.float64, **knobs)


def variance(values: list[float]) -> float:
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / len(values)


@pytest.mark.parametrize("training", [True, False])
def test_is_the_formula_value_by_value(training):
    norm, x = EvoNormB0(2, eps=0.1, dtype=torch.float64).train(training), draw(3, 2, 2, 4)
    with torch.no_grad():
        for seed, parameter in enumerate(norm.parameters()):
            parameter.copy_(draw(2, seed=seed + 1))
        norm.running_var.copy_(torch.tensor([0.3, 2.0], dtype=torch.float64))
    y = norm(x.clone())
    kept = [0.3, 2.0]
    branches = set()
    for c in range(2):
        of_batch = math.sqrt((variance(x[:, c].flatten().tolist()) if training else kept[c]) + 0.1)
        for n in range(3):
            std = math.sqrt(variance(x[n, c].flatten().tolist()) + 0.1)
            for i in range(2):
                for j in range(4):
                    value = x[n, c, i, j].item()
                    line = norm.v[c].item() * value + std
                    branches.add(line > of_batch)
                    expected = norm.weight[c].item() * value / max(of_batch, line) + norm.bias[c].item()
                    assert y[n, c, i, j].item() == pytest.approx(expected, abs=1e-12)
    assert branches == {True, False}


def test_with_v_at_zero_of_one_pixel_and_channels_of_mean_zero_it_is_batch_norm():
    x = draw(8, 3, 1, 1)
    x -= x.mean(0)
    norm = bare(3)
    norm.v.data.zero_()
    torch.testing.assert_close(norm(x), BatchNorm(3, eps=1e-3, affine=False, dtype=torch.float64)(x))


def test_large_values_come_close_to_gamma_over_v():
    norm = EvoNormB0(1, dtype=torch.float64)
    with torch.no_grad():
        norm.v.fill_(2.0)
        norm.weight.fill_(3.0)
    x = draw(4, 1, 8, 8)
    x[0, 0, 0, 0] = 1e6
    y = norm(x)
    assert y.max() <= 1.5
    assert y[0, 0, 0, 0].item() == pytest.approx(1.5, rel=0.1)


def test_running_variance_moves_as_batch_norms_and_evaluation_uses_it():
    ours, theirs = bare(3, momentum=0.3), BatchNorm(3, momentum=0.3, dtype=torch.float64)
    for seed in range(3):
        x = 2 * draw(4, 3, 2, 2, seed=seed)
        ours(x)
        theirs(x)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    kept, x = ours.running_var.clone(), draw(4, 3, 2, 2)
    in_training = ours(x)
    ours.running_var.copy_(kept)
    ours.eval()
    assert not torch.allclose(ours(x), in_training)
    torch.testing.assert_close(ours(x[:1]), ours(x)[:1])
    assert torch.equal(ours.running_var, kept)


def test_a_batch_of_one_is_refused_in_training_alone():
    with pytest.raises(Refusal, match="EvoNorm-B0 needs a batch of at least 2 samples in training, got 1") as refused:
        EvoNormB0(3)(torch.randn(1, 3, 4, 4))
    assert refused.value.code == "batch-of-one"
    assert EvoNormB0(3).eval()(torch.randn(1, 3, 4, 4)).isfinite().all()


def test_forgets_scale_but_not_shift():
    norm, x = bare(3, eps=1e-30), draw(4, 3, 4, 4)
    assert norm.activates
    torch.testing.assert_close(norm(7 * x), norm(x))
    assert (norm(x + 5) - norm(x)).abs().max() > 0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs_whose_squares_overflow_or_underflow_in_half_come_out_right(dtype):
    for exact_x in (200 + 50 * draw(2, 3, 8, 8), 1e-4 * draw(2, 3, 8, 8)):
        x = exact_x.to(dtype)
        exact = bare(3, eps=1e-12)(x.double())
        norm = EvoNormB0(3, eps=1e-12, affine=False)
        torch.testing.assert_close(norm(x).double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_variance_far_from_zero_is_that_of_two_passes():
    x = 1000 + draw(4, 3, 16, 16)
    norm = EvoNormB0(3, momentum=1.0)
    norm(x.float())
    torch.testing.assert_close(norm.running_var.double(), x.var((0, 2, 3)), rtol=1e-5, atol=0)


def test_a_batch_between_an_evaluation_and_its_backward_pass_leaves_that_alone():
    norm, x = bare(3).eval(), draw(4, 3, 4, 4).requires_grad_()
    (expected,) = torch.autograd.grad(norm(x).sum(), x)
    y = norm(x)
    norm.train()(draw(4, 3, 4, 4, seed=1))
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], expected)


def test_its_running_variance_is_recomputed_like_any_other():
    model, x = nn.Sequential(bare(3)), 2 * draw(8, 3, 4, 4)
    assert recompute_statistics(model, [x[:2], x[2:]]).layers == ("0",)
    torch.testing.assert_close(model[0].running_var, x.var((0, 2, 3), correction=0))
