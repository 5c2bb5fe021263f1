import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from normcore.norms.evonorm_s0 import EvoNormS0
from normcore.norms.group import GroupNorm
from normcore.refusal import Refusal


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bare(num_features: int, num_groups: int = 2, **knobs: float) -> EvoNormS0:
    return EvoNormS0(num_features, num_groups=num_groups, affine=False, dtype=torch.float64, **knobs)


def test_is_the_formula_value_by_value():
    norm, x = EvoNormS0(4, num_groups=2, eps=0.1, dtype=torch.float64), draw(2, 4, 3, 2)
    with torch.no_grad():
        for seed, parameter in enumerate(norm.parameters()):
            parameter.copy_(draw(4, seed=seed + 1))
    y = norm(x)
    for n in range(2):
        for c in range(4):
            values = x[n, c // 2 * 2 : c // 2 * 2 + 2].flatten().tolist()
            mean = sum(values) / 12
            root = math.sqrt(sum((value - mean) ** 2 for value in values) / 12 + 0.1)
            for i in range(3):
                for j in range(2):
                    value = x[n, c, i, j].item()
                    swish = value / (1 + math.exp(-norm.v[c].item() * value))
                    expected = norm.weight[c].item() * swish / root + norm.bias[c].item()
                    assert y[n, c, i, j].item() == pytest.approx(expected, abs=1e-12)


def test_for_large_v_it_is_the_relu_of_x_by_group_norms_divisor_and_for_v_zero_half_of_that_quotient():
    norm, x = bare(4), draw(2, 4, 3, 3)
    x -= x.view(2, 2, -1).mean(2).repeat_interleave(2, 1)[..., None, None]
    divided = GroupNorm(4, num_groups=2, affine=False)(x)
    norm.v.data.fill_(1e6)
    torch.testing.assert_close(norm(x), divided.relu())
    norm.v.data.zero_()
    torch.testing.assert_close(norm(x), divided / 2)


def test_a_shift_moves_the_numerator_alone():
    norm, x = bare(4), draw(2, 4, 3, 3)
    torch.testing.assert_close(norm(x + 5) / functional.silu(x + 5), norm(x) / functional.silu(x))
    assert not torch.allclose(norm(2 * x), norm(x), rtol=0.1)


def test_is_the_same_in_evaluation_and_for_every_batch():
    norm, x = bare(4), draw(3, 4, 3, 3)
    assert norm.activates
    assert torch.equal(norm.eval()(x), norm.train()(x))
    torch.testing.assert_close(norm(x[:1]), norm(x)[:1])


def test_groups_that_do_not_divide_are_refused_or_the_nearest_is_taken_as_in_group_norm():
    with pytest.raises(Refusal, match="num_groups must divide num_features, got num_groups 32 and num_features 48"):
        EvoNormS0(48)
    norm = EvoNormS0(48, divisibility="nearest")
    assert norm.num_groups == GroupNorm(48, divisibility="nearest").num_groups == 24
    assert "num_groups=24 (nearest to 32)" in repr(norm)


@pytest.mark.parametrize("shape", [(3, 6), (3, 6, 1, 1)])
def test_groups_of_a_single_value_are_refused(shape):
    """Their variance is zero, so that a swish, a thousand times enlarged at eps 1e-6, would be left."""
    sentence = "more than one value in a group, got 6 channels of one pixel in num_groups 6; take fewer groups$"
    with pytest.raises(Refusal, match=sentence) as refused:
        EvoNormS0(6, num_groups=6)(torch.randn(shape))
    assert refused.value.code == "one-value-group"
    assert EvoNormS0(6, num_groups=3)(torch.randn(shape)).shape == shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs_whose_squares_overflow_or_underflow_in_half_come_out_right(dtype):
    for exact_x in (200 + 50 * draw(2, 4, 8, 8), 1e-4 * draw(2, 4, 8, 8)):
        x = exact_x.to(dtype)
        exact = bare(4, eps=1e-12)(x.double())
        norm = EvoNormS0(4, num_groups=2, eps=1e-12, affine=False)
        torch.testing.assert_close(norm(x).double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_variance_far_from_zero_is_that_of_two_passes():
    x = 1000 + draw(2, 4, 16, 16)
    exact = bare(4)(x)
    torch.testing.assert_close(EvoNormS0(4, num_groups=2)(x.float()).double(), exact, rtol=1e-5, atol=0)
