import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from normcore.norms.closed_form import window_sum
from normcore.norms.local_response import LocalResponseNorm
from normcore.refusal import Refusal


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("beta", [0.75, 0.5, 1.3])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 12, 100])
@pytest.mark.parametrize("shape", [(2, 6, 3), (2, 6, 3, 2), (2, 6, 1, 3, 2)])
def test_equals_torch_in_torchs_convention(shape, size, beta):
    x = draw(*shape)
    norm = LocalResponseNorm(6, size=size, alpha=0.9, beta=beta, k=0.7, convention="torch")
    torch.testing.assert_close(norm(x), nn.LocalResponseNorm(size, alpha=0.9, beta=beta, k=0.7)(x))


def test_is_the_papers_formula_value_by_value():
    norm, x = LocalResponseNorm(7, size=3, alpha=0.4, beta=0.75, k=2.0), draw(2, 7, 2, 2)
    y = norm(x)
    for c in range(7):
        squares = sum(x[:, j] ** 2 for j in range(max(0, c - 1), min(6, c + 1) + 1))
        torch.testing.assert_close(y[:, c], x[:, c] / (2.0 + 0.4 * squares) ** 0.75)


def test_alpha_of_the_paper_is_torchs_divided_by_the_size():
    x = draw(2, 8, 4, 4)
    theirs = nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)(x)
    torch.testing.assert_close(LocalResponseNorm(8)(x), theirs, rtol=1e-14, atol=0)
    assert not torch.allclose(LocalResponseNorm(8, alpha=5e-4)(x), theirs, rtol=1e-5)


def test_over_all_channels_with_the_root_it_is_root_mean_square_norm_of_each_pixel():
    x = draw(2, 6, 3, 3)
    norm = LocalResponseNorm(6, size=12, alpha=1 / 6, beta=0.5, k=1e-5)
    expected = functional.rms_norm(x.movedim(1, -1), (6,), eps=1e-5).movedim(-1, 1)
    torch.testing.assert_close(norm(x), expected)


def test_of_vectors_it_is_that_of_one_pixel():
    x, norm = draw(3, 6), LocalResponseNorm(6, alpha=0.5)
    torch.testing.assert_close(norm(x), norm(x[..., None, None])[..., 0, 0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs_whose_squares_overflow_or_underflow_in_half_come_out_right(dtype):
    for exact_x in (200 + 50 * draw(2, 6, 4, 4), 1e-4 * draw(2, 6, 4, 4)):
        x = exact_x.to(dtype)
        norm = LocalResponseNorm(6, alpha=1.0, k=1e-8)
        torch.testing.assert_close(norm(x).double(), norm(x.double()), rtol=torch.finfo(dtype).eps, atol=1e-6)


def test_is_odd_but_looks_at_scale_and_is_the_same_in_evaluation():
    norm, x = LocalResponseNorm(6, alpha=0.5), draw(2, 6, 3, 3)
    assert torch.equal(norm(-x), -norm(x))
    assert not torch.allclose(norm(2 * x), norm(x), rtol=0.1)
    assert torch.equal(norm.eval()(x), norm.train()(x))
    assert not list(norm.parameters())


def test_channels_that_are_not_those_it_was_built_for_are_refused():
    with pytest.raises(Refusal, match="num_features 6 in dimension 1, got shape") as refused:
        LocalResponseNorm(6)(torch.zeros(2, 5, 3))
    assert refused.value.code == "channels-differ"


@pytest.mark.parametrize("count", range(1, 12))
def test_sums_of_neighbours_are_those_added_one_by_one_and_lose_no_digits(count):
    x = draw(3, 11, 2).float()
    x[:, 0] = 1e8
    sums = window_sum(x, count, dim=1)
    assert sums.shape == (3, 12 - count, 2)
    for start in range(1, 12 - count):
        exact = x[:, start : start + count].double().sum(1)
        torch.testing.assert_close(sums[:, start].double(), exact, rtol=1e-6, atol=1e-6)
