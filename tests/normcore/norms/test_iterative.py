import math

import pytest
import torch
from torch import Tensor

from normcore.norms.diagnosis import Diagnoses
from normcore.norms.iterative import IterativeNorm
from normcore.norms.whitening import Whitening

X = torch.randn(8, 6, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
X = X + 0.7 * X.roll(1, 1) + 3


def iterative(iterations: int, num_features: int = 6, channels: int = 3, **knobs) -> IterativeNorm:
    knobs = {"eps": 1e-20, "affine": False, "dtype": torch.float64} | knobs
    return IterativeNorm(num_features, iterations=iterations, channels_per_group=channels, **knobs)


def covariances(y: Tensor, channels: int = 3) -> Tensor:
    return torch.stack([group.cov(correction=0) for group in y.transpose(0, 1).flatten(1).split(channels)])


def ill_conditioned(values: int, channels: int, decades: float) -> Tensor:
    """Standard deviations over so many decades, along axes of any direction."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(values, channels, dtype=torch.float64, generator=generator)
    axes, _ = torch.linalg.qr(torch.randn(channels, channels, dtype=torch.float64, generator=generator))
    return noise * torch.logspace(0, -decades, channels, dtype=torch.float64) @ axes.T


@pytest.mark.parametrize("iterations", [1, 2, 5, 9, 15])
def test_variance_along_each_principal_axis_is_that_of_the_scalar_iteration(iterations):
    lengths, axes = torch.linalg.eigh(covariances(X))
    shares = lengths / lengths.sum(-1, keepdim=True)
    p = torch.ones_like(shares)
    for _ in range(iterations):
        p = 1.5 * p - 0.5 * p**3 * shares
    expected = axes @ (shares * p**2).diag_embed() @ axes.mT
    torch.testing.assert_close(covariances(iterative(iterations)(X)), expected)


def test_of_a_white_input_five_iterations_leave_0_59_of_the_variance_of_64_channels():
    p = 1.0
    for _ in range(5):
        p = 1.5 * p - 0.5 * p**3 / 64
    x = torch.randn(400, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    white = Whitening(64, channels_per_group=64, eps=1e-20, dtype=torch.float64)(x).detach()
    seen = covariances(iterative(5, 64, 64)(white), 64)
    torch.testing.assert_close(seen, p**2 / 64 * torch.eye(64, dtype=torch.float64)[None])
    assert round(p**2 / 64, 2) == 0.59


def test_many_iterations_are_zca_whitening():
    zca = Whitening(6, channels_per_group=3, eps=1e-20, affine=False, dtype=torch.float64)
    torch.testing.assert_close(iterative(25)(X), zca(X))


@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-9), (torch.float32, 5e-3)])
def test_stays_in_its_region_where_the_iteration_as_written_leaves_it(dtype, most):
    x = ill_conditioned(1000, 64, 2.0)
    sigma = x.T.cov(correction=0).to(dtype)
    p, share = torch.eye(64, dtype=dtype), sigma / sigma.trace()
    for _ in range(32):
        p = 1.5 * p - 0.5 * p @ p @ p @ share
    assert not (p @ share @ p).norm() < 1e3
    norm = iterative(32, 64, 64, dtype=dtype)
    seen = covariances(norm(x.to(dtype)).double(), 64)[0]
    assert (seen - torch.eye(64)).abs().max() < most
    assert norm.newton_residual < most


@pytest.mark.parametrize("iterations", [1, 5, 9])
def test_residual_is_that_of_the_group_farthest_from_white(iterations):
    norm = iterative(iterations)
    norm(X)
    rest = torch.eye(3, dtype=torch.float64) - covariances(iterative(iterations)(X))
    torch.testing.assert_close(norm.newton_residual.squeeze(), rest.flatten(1).norm(dim=1).max() / math.sqrt(3))
    assert 0 < norm.newton_residual < 1


def test_diagnosis_is_the_residual_of_the_last_training_pass_and_no_part_of_the_state():
    norm = iterative(5)
    norm(X.roll(1, 1) ** 3)
    first = norm.diagnosis()["newton_residual"].clone()
    norm(X)
    second = norm.diagnosis()["newton_residual"].clone()
    assert second != first
    norm.eval()(X.roll(1, 1) ** 3)
    assert norm.diagnosis() == {"newton_residual": second}
    assert isinstance(norm, Diagnoses)
    assert "newton_residual" not in norm.state_dict()


def test_a_batch_that_is_not_finite_has_a_residual_that_says_so():
    norm = iterative(5)
    norm(X / 0)
    assert norm.newton_residual.isnan()


def test_knobs_are_told():
    assert repr(IterativeNorm(64)) == (
        "IterativeNorm(64, iterations=5, channels_per_group=64, eps=1e-05, momentum=0.1, affine=True)"
    )
