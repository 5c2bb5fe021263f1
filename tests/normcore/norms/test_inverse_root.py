"""The oracle is scalar: functions of a matrix act on its eigenvalues."""

import math

import pytest
import torch
from torch import Tensor

from normcore.norms.inverse_root import pca, zca

ROOTS = {"zca": zca, "pca": pca}
APART = (0.2, 1.0, 3.0, 7.0)
EQUAL = (1.0, 1.0, 1.0, 4.0)


@pytest.fixture(params=ROOTS)
def root(request):
    return lambda sigma: ROOTS[request.param](sigma, 1e-12)


def turned(values: tuple[float, ...], seed: int = 0) -> tuple[Tensor, Tensor]:
    """A symmetric matrix with these eigenvalues, and its eigenvectors."""
    generator = torch.Generator().manual_seed(seed)
    axes, _ = torch.linalg.qr(torch.randn(len(values), len(values), dtype=torch.float64, generator=generator))
    return axes * torch.tensor(values, dtype=torch.float64) @ axes.T, axes


def directions(sigma: Tensor, count: int, seed: int = 1) -> Tensor:
    noise = torch.randn(count, *sigma.shape, dtype=sigma.dtype, generator=torch.Generator().manual_seed(seed))
    return noise + noise.mT


@pytest.mark.parametrize("values", [APART, EQUAL])
def test_whitens(root, values):
    sigma, _ = turned(values)
    whitening = root(sigma)
    torch.testing.assert_close(whitening @ sigma @ whitening.T, torch.eye(4, dtype=torch.float64))


def test_zca_is_symmetric_and_positive():
    whitening = zca(turned(APART)[0], 1e-12)
    torch.testing.assert_close(whitening, whitening.T, rtol=0, atol=1e-14)
    assert torch.linalg.eigvalsh(whitening).min() > 0


def test_pca_has_the_principal_axes_in_falling_order_with_their_largest_component_positive():
    sigma, axes = turned(APART)
    whitening = pca(sigma, 1e-12)
    expected = axes.T.flip(0) / torch.tensor(APART, dtype=torch.float64).flip(0).sqrt()[:, None]
    torch.testing.assert_close(whitening.abs(), expected.abs())
    largest = whitening.gather(-1, whitening.abs().argmax(-1, keepdim=True))
    assert largest.min() > 0


@pytest.mark.parametrize("values", [APART, EQUAL])
def test_derivative_of_zca_is_that_of_divided_differences(values):
    """Daleckii & Krein: U^T df U = ((f(l_i) - f(l_j)) / (l_i - l_j) or f'(l_i)) * U^T dsigma U."""
    sigma, axes = turned(values)
    slopes = torch.empty(4, 4, dtype=torch.float64)
    for i, a in enumerate(values):
        for j, b in enumerate(values):
            slopes[i, j] = -0.5 * a**-1.5 if a == b else (a**-0.5 - b**-0.5) / (a - b)
    for direction in directions(sigma, 2):
        _, seen = torch.func.jvp(lambda s: zca(s, 1e-12), (sigma,), (direction,))
        torch.testing.assert_close(seen, axes @ (slopes * (axes.T @ direction @ axes)) @ axes.T)


@pytest.mark.parametrize("values", [APART, EQUAL])
def test_second_derivative_of_zca_is_that_of_its_equation(values):
    """W sigma W = I, differentiated twice along one direction: a Sylvester equation for the second derivative."""
    sigma, _ = turned(values)
    direction = directions(sigma, 1)[0]

    def along(t: Tensor) -> Tensor:
        return zca(sigma + t * direction, 1e-12)

    zero = torch.zeros((), dtype=torch.float64)
    first = torch.func.jvp(along, (zero,), (zero + 1,))[1]
    second = torch.func.jvp(lambda t: torch.func.jvp(along, (t,), (zero + 1,))[1], (zero,), (zero + 1,))[1]
    w = zca(sigma, 1e-12)
    rest = 2 * (first @ sigma @ first + first @ direction @ w + w @ direction @ first)
    torch.testing.assert_close(second @ sigma @ w + w @ sigma @ second, -rest)


def test_first_and_second_derivatives_are_those_of_finite_differences(root):
    sigma = turned(APART)[0].requires_grad_()

    def of_symmetric(s: Tensor) -> Tensor:
        return root((s + s.T) / 2)

    assert torch.autograd.gradcheck(of_symmetric, sigma, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(of_symmetric, sigma, check_fwd_over_rev=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_derivatives_are_finite_where_eigenvalues_are_equal_and_torchs_are_not(root, dtype):
    sigma = torch.eye(3, dtype=dtype).requires_grad_()
    weights = torch.arange(9, dtype=dtype).view(3, 3)
    values, axes = torch.linalg.eigh(sigma)
    (theirs,) = torch.autograd.grad((weights * (axes * values.rsqrt() @ axes.T)).sum(), sigma)
    assert not theirs.isfinite().all()
    (first,) = torch.autograd.grad((weights * root(sigma)).sum(), sigma, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), sigma)
    assert first.isfinite().all()
    assert second.isfinite().all()


def test_gradient_of_pca_between_equal_eigenvalues_is_bounded_and_between_unequal_ones_untouched():
    """For sigma = diag(1 + gap, 1), turning by d sigma_12 / gap moves W_12 by that turn."""
    for gap, expected in ((0.1, 1 / 0.1), (1e-12, 0.0)):
        sigma = torch.diag(torch.tensor([1 + gap, 1.0], dtype=torch.float64))
        direction = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
        _, seen = torch.func.jvp(lambda s: pca(s, 1e-12), (sigma,), (direction,))
        assert math.isclose(seen[0, 1], expected / math.sqrt(1 + gap), rel_tol=1e-9, abs_tol=5e4), gap
        assert seen.abs().max() <= 0.5 / torch.finfo(torch.float64).eps ** 0.5


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_covariance_that_is_not_finite_gives_no_error_but_nan(root, bad):
    sigma = turned(APART)[0]
    sigma[0, 0] = bad
    assert not root(sigma).isfinite().any()
    both = torch.stack([sigma, turned(APART)[0]])
    assert root(both)[1].isfinite().all()


def test_a_singular_covariance_that_rounding_made_negative_is_bounded_by_the_smallest_eigenvalue():
    sigma = torch.diag(torch.tensor([1.0, -1e-6, 1e-5]))
    assert zca(sigma, 1e-5).abs().max() < 4 * 1e-5**-0.5
    assert pca(sigma, 1e-5).abs().max() <= 1.001 * 1e-5**-0.5


def test_axes_of_pca_do_not_drown_in_eps():
    """Eps is a thousand times the eigenvalues: added first, it would leave float32 four digits to tell them apart."""
    sigma, _ = turned(APART)
    torch.testing.assert_close(
        pca((1e-8 * sigma).float(), 1e-5).double(), pca(1e-8 * sigma, 1e-5), rtol=1e-5, atol=1e-2
    )


@pytest.mark.parametrize("kind", ROOTS)
def test_derivatives_are_finite_where_nothing_varies(kind):
    sigma = torch.zeros(3, 3).requires_grad_()
    (gradient,) = torch.autograd.grad((torch.arange(9.0).view(3, 3) * ROOTS[kind](sigma, 1e-5)).sum(), sigma)
    assert gradient.isfinite().all()
