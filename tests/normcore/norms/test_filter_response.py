import pytest
import torch
from torch import Tensor

from normcore.norms.filter_response import EPS_ON_ONE_PIXEL, FilterResponseNorm
from normcore.norms.instance import InstanceNorm
from normcore.refusal import Refusal


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def bare(num_features: int, **knobs: float) -> FilterResponseNorm:
    return FilterResponseNorm(num_features, tlu=False, affine=False, dtype=torch.float64, **knobs)


def test_is_the_formula_value_by_value():
    norm, x = FilterResponseNorm(3, eps=0.1, learned_eps=True, dtype=torch.float64), draw(2, 3, 4, 5)
    with torch.no_grad():
        for seed, parameter in enumerate(norm.parameters()):
            parameter.copy_(draw(3, seed=seed + 1))
    y = norm(x)
    for n in range(2):
        for c in range(3):
            nu2 = sum(value.item() ** 2 for value in x[n, c].flatten()) / 20
            root = (nu2 + 0.1 + abs(norm.eps_l[c].item())) ** 0.5
            for i in range(4):
                for j in range(5):
                    inside = norm.weight[c] * x[n, c, i, j] / root + norm.bias[c]
                    assert y[n, c, i, j].item() == pytest.approx(max(inside.item(), norm.tau[c].item()), abs=1e-12)


def test_of_channels_with_mean_zero_is_instance_norm():
    x = draw(2, 3, 4, 4)
    x -= x.mean((2, 3), keepdim=True)
    torch.testing.assert_close(bare(3, eps=1e-5)(x), InstanceNorm(3, affine=False)(x))


def test_ends_at_first_in_a_relu():
    x = draw(2, 3, 4, 4)
    torch.testing.assert_close(FilterResponseNorm(3, dtype=torch.float64)(x), bare(3)(x).relu())


def test_does_not_look_at_scale_but_at_shift_and_is_odd():
    norm, x = bare(3, eps=1e-30), draw(2, 3, 4, 4)
    torch.testing.assert_close(norm(7 * x), norm(x))
    torch.testing.assert_close(norm(-x), -norm(x))
    assert (norm(x + 5) - norm(x)).abs().max() > 0.5


def test_is_the_same_in_evaluation_and_for_every_batch():
    norm, x = FilterResponseNorm(3), draw(4, 3, 4, 4)
    assert torch.equal(norm.eval()(x), norm.train()(x))
    torch.testing.assert_close(norm(x[:1]), norm(x)[:1])


def test_holds_its_own_non_linearity_only_with_the_threshold():
    assert FilterResponseNorm(3).activates
    assert not FilterResponseNorm(3, tlu=False).activates
    assert not FilterResponseNorm(3).claims.odd
    assert FilterResponseNorm(3, tlu=False).claims.odd


def test_learns_per_channel_what_its_knobs_say():
    every = FilterResponseNorm(3, learned_eps=True)
    assert {name: p.shape for name, p in every.named_parameters()} == dict.fromkeys(
        ("weight", "bias", "tau", "eps_l"), (3,)
    )
    assert torch.equal(every.eps_l, torch.full((3,), EPS_ON_ONE_PIXEL))
    assert not dict(FilterResponseNorm(3, tlu=False, affine=False).named_parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs_whose_squares_overflow_or_underflow_in_half_come_out_right(dtype):
    for exact_x in (200 + 50 * draw(2, 3, 8, 8), 1e-4 * draw(2, 3, 8, 8)):
        x = exact_x.to(dtype)
        exact = bare(3, eps=1e-12)(x.double())
        assert exact.abs().max() > 1
        norm = FilterResponseNorm(3, eps=1e-12, tlu=False, affine=False)
        torch.testing.assert_close(norm(x).double(), exact, rtol=torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 6), (3, 6, 1), (3, 6, 1, 1)])
def test_a_map_of_one_pixel_is_refused_unless_eps_is_learned(shape):
    sentence = (
        "with a fixed eps needs more than one pixel in a map, got 1, of which it leaves the sign and no gradient; "
        "set learned_eps to true, or take layer norm$"
    )
    for norm in (FilterResponseNorm(6), FilterResponseNorm(6).eval()):
        with pytest.raises(Refusal, match=sentence) as refused:
            norm(torch.randn(shape))
        assert refused.value.code == "one-pixel-map"
    assert FilterResponseNorm(6, learned_eps=True)(torch.randn(shape)).shape == shape


def test_of_one_pixel_a_fixed_eps_would_leave_the_sign_and_a_learned_one_leaves_a_gradient():
    """Why it is refused: the derivative eps / (x^2 + eps)^1.5 at x = 0.1, eps = 1e-6 is 0.001."""
    x = torch.full((1, 1, 1), 0.1, dtype=torch.float64, requires_grad=True)
    norm = FilterResponseNorm(1, learned_eps=True, tlu=False, affine=False, dtype=torch.float64)
    slopes = []
    for eps_l in (0.0, 0.1):
        norm.eps_l.data.fill_(eps_l)
        slopes += [torch.autograd.grad(norm(x).sum(), x)[0].item()]
    assert slopes[0] == pytest.approx(1e-6 / (0.01 + 1e-6) ** 1.5)
    assert slopes[0] < 1e-3
    assert slopes[1] > 1


def test_where_the_threshold_is_met_exactly_the_gradient_goes_to_the_threshold():
    x = torch.zeros(1, 2, 2, 2, requires_grad=True)
    norm = FilterResponseNorm(2)
    norm(x).sum().backward()
    assert not x.grad.any()
    assert torch.equal(norm.tau.grad, torch.tensor([4.0, 4.0]))
    assert not norm.bias.grad.any()


def test_what_is_not_a_number_stays_so():
    x = torch.randn(2, 3, 4, 4)
    x[0, 0, 0, 0] = torch.nan
    y = FilterResponseNorm(3)(x)
    assert y[0, 0].isnan().all()
    assert y[1].isfinite().all()
