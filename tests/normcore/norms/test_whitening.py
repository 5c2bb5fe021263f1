import pytest
import torch
from torch import Tensor

from normcore.norms.whitening import Whitening

X = torch.randn(8, 6, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
X = X + 0.7 * X.roll(1, 1) + 3


def whitening(channels: int = 3, **knobs) -> Whitening:
    return Whitening(6, channels_per_group=channels, dtype=torch.float64, **{"eps": 1e-20, "affine": False} | knobs)


def covariances(y: Tensor, channels: int = 3) -> Tensor:
    return torch.stack([group.cov(correction=0) for group in y.transpose(0, 1).flatten(1).split(channels)])


@pytest.mark.parametrize("method", ["zca", "pca"])
@pytest.mark.parametrize("channels", [2, 3, 6])
def test_covariance_of_every_group_is_the_identity(method, channels):
    seen = covariances(whitening(channels, method=method)(X), channels)
    torch.testing.assert_close(seen, torch.eye(channels).double().expand_as(seen), rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", ["zca", "pca"])
def test_eps_leaves_each_principal_axis_the_variance_l_over_l_plus_eps(method):
    lengths = torch.linalg.eigvalsh(covariances(X))
    seen = torch.linalg.eigvalsh(covariances(whitening(method=method, eps=0.3)(X)))
    torch.testing.assert_close(seen, lengths / (lengths + 0.3))


def test_zca_moves_values_least_of_all_matrices_that_whiten():
    """All others are a rotation times it."""
    zca, pca = whitening()(X), whitening(method="pca")(X)
    centred = X - X.mean((0, 2, 3), keepdim=True)
    least = (zca - centred).norm()
    assert least < (pca - centred).norm()
    for seed in range(20):
        noise = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        rotation = torch.matrix_exp(0.1 * (noise - noise.T))
        turned = torch.einsum("ij,ngjhw->ngihw", rotation, zca.unflatten(1, (2, 3))).flatten(1, 2)
        assert least < (turned - centred).norm()


def test_pca_swaps_channels_where_variances_cross_and_zca_does_not():
    """A small change of the input, and the channels that the next layer reads are others."""
    noise = torch.randn(500, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = Whitening(2, channels_per_group=2, eps=1e-20, dtype=torch.float64)(noise).detach()
    wider, higher = (noise * torch.tensor(scale, dtype=torch.float64) for scale in ([1.01, 1.0], [1.0, 1.01]))
    for method, change in (("zca", 0.02), ("pca", 1.4)):
        norm = Whitening(2, channels_per_group=2, method=method, affine=False, dtype=torch.float64)
        moved = (norm(wider) - norm(higher)).square().mean().sqrt()
        assert abs(moved - change) < 0.03, method


def test_average_of_swapped_pca_axes_whitens_nothing_and_that_of_zca_does():
    noise = torch.randn(500, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wider, higher = (noise * torch.tensor(scale, dtype=torch.float64) for scale in ([1.1, 0.9], [0.9, 1.1]))
    rest = {}
    for method in ("zca", "pca"):
        norm = Whitening(2, channels_per_group=2, method=method, momentum=0.5, dtype=torch.float64)
        for _ in range(8):
            norm(wider)
            norm(higher)
        rest[method] = (norm.eval()(noise).T.cov() - torch.eye(2)).norm()
    assert rest["zca"] < 0.2
    assert rest["pca"] > 0.8


def test_knobs_are_told():
    assert repr(Whitening(32)) == (
        "Whitening(32, method=zca, channels_per_group=16, eps=1e-05, momentum=0.1, affine=True)"
    )
