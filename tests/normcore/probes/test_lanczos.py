"""Lanczos' iteration against the eigenvalues of matrices that are written down."""

import math

import pytest
import torch

from normcore.probes.lanczos import density, lanczos, largest, smallest


def symmetric(size=12, seed=0):
    matrix = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return matrix + matrix.T


def vector(size=12, seed=1):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def signs(size, seed=1):
    return vector(size, seed).sign()


def space_of(matrix, start, iterations):
    return lanczos(lambda v: matrix @ v, start, iterations, torch.Generator().manual_seed(2))


def moments(grid, share, count):
    return [float(torch.trapezoid(share * grid**power, grid)) for power in range(count)]


def test_as_many_iterations_as_dimensions_give_all_eigenvalues_and_their_weights_in_the_start():
    matrix, start = symmetric(), vector()
    values, weights, errors = space_of(matrix, start, 12).ritz()
    expected, vectors = torch.linalg.eigh(matrix)
    torch.testing.assert_close(values, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(weights, (vectors.T @ start).square() / start.square().sum(), rtol=1e-8, atol=1e-12)
    assert errors.max() < 1e-8


def test_it_is_the_slow_twin_of_the_krylov_space():
    """The eigenvalues of Q^T A Q, with Q from a QR decomposition of v, A v, A^2 v, ..."""
    matrix, start = symmetric(), vector()
    columns = torch.stack([torch.linalg.matrix_power(matrix, power) @ start for power in range(5)], 1)
    q, _ = torch.linalg.qr(columns)
    space = space_of(matrix, start, 5)
    values, _, errors = space.ritz()
    torch.testing.assert_close(values, torch.linalg.eigvalsh(q.T @ matrix @ q), rtol=1e-9, atol=1e-9)
    assert float(space.diagonal[0]) == pytest.approx(float(start @ matrix @ start / start.square().sum()), rel=1e-12)
    nearest = (values[:, None] - torch.linalg.eigvalsh(matrix)).abs().min(1).values
    assert (nearest <= errors + 1e-9).all()
    assert nearest.max() > 1e-3


def test_more_iterations_than_dimensions_are_as_many():
    assert len(space_of(symmetric(3), vector(3), 9).diagonal) == 3


def test_an_eigenvector_ends_its_space_and_the_rest_is_found_with_no_weight():
    matrix = symmetric(6)
    expected, vectors = torch.linalg.eigh(matrix)
    values, weights, _ = space_of(matrix, vectors[:, 2], 6).ritz()
    torch.testing.assert_close(values, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(weights, torch.eye(6, dtype=torch.float64)[2], rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_eigenvalues_that_have_converged_do_not_come_again(dtype):
    """Without reorthogonalization the largest does, in float32 after some ten iterations."""
    spectrum = torch.cat([torch.linspace(0, 1, 196), torch.tensor([50.0, 100.0, 200.0, 1000.0])]).to(dtype)
    space = lanczos(lambda v: spectrum * v, torch.ones(200, dtype=dtype), 40, torch.Generator())
    values, _ = largest([space], 5)
    assert values[:4].tolist() == pytest.approx([1000, 200, 100, 50], rel=1e-5)
    assert values[4] < 1.001


def test_the_number_of_products_does_not_depend_on_the_matrix():
    """Or the devices of a training would wait for each other."""
    for matrix in (torch.zeros(5, 5), torch.eye(5), torch.full((5, 5), torch.nan), symmetric(5).float()):
        asked = []

        def product(v, matrix=matrix, asked=asked):
            asked.append(v)
            return matrix @ v

        lanczos(product, torch.ones(5), 4, torch.Generator())
        assert len(asked) == 4


def test_of_several_spaces_the_best_bounds_count():
    matrix = symmetric(30)
    expected = torch.linalg.eigvalsh(matrix).flip(0)
    spaces = [space_of(matrix, vector(30, seed), 6) for seed in (1, 2, 3)]
    values, errors = largest(spaces, 3)
    each = torch.stack([largest([space], 3)[0] for space in spaces])
    assert torch.equal(values, each.max(0).values)
    assert (values <= expected[:3] + 1e-9).all()
    assert errors.shape == (3,)
    assert smallest(spaces) == min(smallest([space]) for space in spaces) >= float(expected[-1]) - 1e-9
    assert len(set(each[:, 0].tolist())) == 3


def test_eigenvalues_that_are_not_there_are_nan():
    values, errors = largest([space_of(torch.eye(2, dtype=torch.float64), vector(2), 4)], 4)
    assert values[:2].tolist() == pytest.approx([1, 1])
    assert values[2:].isnan().all()
    assert errors[2:].isnan().all()


def test_moments_of_the_density_are_those_of_the_spectrum():
    """Of a diagonal matrix random signs have every eigenvalue with the same weight."""
    spectrum = torch.tensor([-3.0, -1.0, 0.0, 0.5, 2.0, 7.0, 20.0, 21.0], dtype=torch.float64)
    spaces = [space_of(spectrum.diag(), signs(8, seed), 4) for seed in (1, 2)]
    grid, share = density(spaces, 400)
    low, high = spaces[0].ritz()[0][[0, -1]]
    sigma = 0.01 * float(high - low)
    mean, square = float(spectrum.mean()), float(spectrum.square().mean())
    assert moments(grid, share, 3) == pytest.approx([1, mean, square + sigma**2], rel=1e-7)
    third = float((spectrum**3).mean()) + 3 * sigma**2 * mean
    assert moments(grid, share, 4)[3] == pytest.approx(third, rel=1e-7)


def test_of_a_whole_space_the_density_is_the_smoothed_spectrum():
    spectrum = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    grid, share = density([space_of(spectrum.diag(), signs(3), 3)], 50)
    normal = torch.distributions.Normal(spectrum, 0.04)
    torch.testing.assert_close(share, normal.log_prob(grid[:, None]).exp().mean(1), rtol=1e-6, atol=1e-12)
    assert (float(grid[0]), float(grid[-1])) == pytest.approx((1 - 0.24, 5 + 0.24))


def test_of_any_matrix_the_density_is_without_bias():
    matrix = symmetric(20)
    spaces = [space_of(matrix, signs(20, seed), 5) for seed in range(400)]
    _, mean, square = moments(*density(spaces, 400), 3)
    assert mean == pytest.approx(float(matrix.trace()) / 20, abs=0.2)
    assert square == pytest.approx(float(matrix.square().sum()) / 20, rel=0.05)


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_a_matrix_of_one_eigenvalue_has_a_density(value):
    grid, share = density([space_of(value * torch.eye(4, dtype=torch.float64), signs(4), 3)], 200)
    assert moments(grid, share, 2) == pytest.approx([1, value], rel=1e-6, abs=1e-9)


def test_what_is_not_finite_is_nan_and_no_error():
    space = space_of(torch.full((4, 4), math.inf, dtype=torch.float64), signs(4), 3)
    assert all(each.isnan().all() for each in (*space.ritz(), *largest([space], 2), *density([space], 10)))
    assert math.isnan(smallest([space]))
