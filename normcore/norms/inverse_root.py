"""Matrices that whiten: inverse square roots of covariances, with derivatives that stay finite."""

from __future__ import annotations

import torch
from torch import Tensor


def zca(covariance: Tensor, eps: float, orders: int = 2) -> Tensor:
    """The symmetric inverse square root: W = U L^(-1/2) U^T, for sigma = covariance + eps I = U L U^T.

    W is a smooth function of sigma even where eigenvalues are equal and U is not. So nothing is differentiated through
    U: the eigendecomposition of sigma is taken as a constant, and from its W steps of Newton's method (with the
    derivative at the start, in the basis U: a division by sqrt(l_i) + sqrt(l_j)) go to the root of W sigma W = I. They
    move the value by rounding alone, and each makes one more order of derivatives exact. The first is

        dW = -U [(U^T W dsigma W U)_ij / (sqrt(l_i) + sqrt(l_j))] U^T

    which is the divided difference of l^(-1/2) without its division of zero by zero.

    Args:
        covariance: `(G, D, D)`, symmetric, with eigenvalues of 0 or more; rounding may say otherwise.
        eps: Added to the eigenvalues.
        orders: Of derivatives that are exact, in forward and reverse mode.

    Example:
        >>> zca(torch.diag(torch.tensor([3.0, 0.0])), 1.0)
        tensor([[0.5000, 0.0000],
                [0.0000, 1.0000]])
    """
    values, axes = _eigen(covariance)
    roots = (values + eps).sqrt()
    slopes = roots.unsqueeze(-1) + roots.unsqueeze(-2)
    identity = torch.eye(covariance.shape[-1], device=covariance.device, dtype=covariance.dtype)
    turned = axes.mT @ covariance @ axes + eps * identity
    whitening = roots.reciprocal().diag_embed()
    for _ in range(orders):
        whitening = whitening - (whitening @ turned @ whitening - identity) / slopes
    return axes @ whitening @ axes.mT


def pca(covariance: Tensor, eps: float, orders: int = 2) -> Tensor:
    """The principal axes, each to variance one: W = L^(-1/2) U^T, the largest eigenvalue first.

    The sign of an axis is that which makes its largest component positive; it jumps where that becomes another one. The
    order jumps where eigenvalues cross. Where two are equal any turn of their axes would do, so W is no function of
    sigma there, and its derivative, which divides by d = l_j - l_i, has no limit. Here it is multiplied by
    d / (d^2 + t^2) instead, with t the covariance's largest eigenvalue times the root of the dtype's epsilon: the
    derivative where eigenvalues differ by much more than t, and finite everywhere. As in `zca` the eigendecomposition
    is a constant, here refined by steps of Ogita & Aishima (2018), each of which makes an order of derivatives exact.

    Args:
        covariance: `(G, D, D)`, symmetric, with eigenvalues of 0 or more; rounding may say otherwise.
        eps: Added to the eigenvalues.
        orders: Of derivatives that are exact, in forward and reverse mode.

    Example:
        >>> pca(torch.diag(torch.tensor([0.0, 3.0])), 1.0)
        tensor([[0.0000, 0.5000],
                [1.0000, 0.0000]])
    """
    values, axes = _eigen(covariance)
    axes = axes.flip(-1)
    axes = axes * axes.gather(-2, axes.abs().argmax(-2, keepdim=True)).sign()
    turned = axes.mT @ covariance @ axes
    # Eps would turn no axis, and only eat digits; zeros have no axes at all.
    numbers = torch.finfo(covariance.dtype)
    near = numbers.eps * values.amax(-1).clamp(min=numbers.tiny**0.25)[..., None, None] ** 2
    identity = torch.eye(covariance.shape[-1], device=covariance.device, dtype=covariance.dtype)
    rotation = identity
    for _ in range(orders):
        skew = identity - rotation.mT @ rotation
        seen = rotation.mT @ turned @ rotation
        lengths = _diagonal(seen) / (1 - _diagonal(skew))
        gaps = lengths.unsqueeze(-2) - lengths.unsqueeze(-1)
        change = (seen + lengths.unsqueeze(-2) * skew) * gaps / (gaps**2 + near)
        rotation = rotation + rotation @ (change * (1 - identity) + identity * skew / 2)
    lengths = _diagonal(rotation.mT @ turned @ rotation).clamp(min=0)
    return (lengths + eps).rsqrt().unsqueeze(-1) * (axes @ rotation).mT


def _eigen(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, rising, and eigenvectors, in columns; both constant."""
    # A training that diverged has a covariance that is not finite, at which the decomposition would raise an error;
    # the steps that follow it bring the NaN back.
    values, axes = torch.linalg.eigh(torch.nan_to_num(covariance.detach(), nan=0.0, posinf=0.0, neginf=0.0))
    return values.clamp(min=0), axes


def _diagonal(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=-2, dim2=-1)
