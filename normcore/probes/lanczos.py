"""Lanczos' iteration (Lanczos 1950), and what it says of a symmetric matrix that is only there as products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import pi

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]
"""A symmetric matrix times a vector, `(P,)` to `(P,)`, in the vector's dtype."""

WIDTH = 0.01
"""Standard deviation of the kernel that a spectrum is smoothed with, over the distance of its ends."""


@dataclass(frozen=True, slots=True)
class Krylov:
    """What a matrix A is in the space of v, A v, ..., A^(m-1) v: Q^T A Q, which is tridiagonal.

    On the CPU and in float64, whatever the vectors were.
    """

    diagonal: Tensor
    """`(m,)`; the first is v^T A v / ||v||^2."""
    off_diagonal: Tensor
    """`(m,)`; beside the diagonal, the last being what leads out of the space."""

    def ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """Its eigenvalues, rising; the weight of each in v, all together 1; and how far each is, at most, from an
        eigenvalue of A. Each `(m,)`; NaN where a product was not finite.
        """
        beside = self.off_diagonal[:-1]
        matrix = self.diagonal.diag() + beside.diag(1) + beside.diag(-1)
        if not matrix.isfinite().all():
            nothing = torch.full_like(self.diagonal, torch.nan)
            return nothing, nothing, nothing
        values, vectors = torch.linalg.eigh(matrix)
        return values, vectors[0].square(), (self.off_diagonal[-1] * vectors[-1]).abs()


def lanczos(product: Product, start: Tensor, iterations: int, generator: torch.Generator) -> Krylov:
    """Lanczos' iteration with full reorthogonalization.

        q_1 = v / ||v||,   b_j q_(j+1) = A q_j - a_j q_j - b_(j-1) q_(j-1),   a_j = q_j^T A q_j

    In exact arithmetic the new vector is orthogonal to all before it; in floats it must be made so, twice (Giraud et
    al. 2005), or eigenvalues that have converged come again. Where the space ends before the iterations do, as it does
    at an eigenvector, it goes on at a right angle from a vector of `generator`, with b_j = 0: so eigenvalues that v
    does not contain are found, too, with a weight of 0. The number of products is always the same.

    Costs `iterations` products and as many vectors of memory, but never more than P.

    Args:
        product: A.
        start: v, `(P,)`, not zero.
        iterations: m.
        generator: On the CPU.

    Example:
        >>> spectrum = torch.tensor([1.0, 2.0, 5.0])
        >>> found = lanczos(lambda v: spectrum * v, torch.ones(3), 3, torch.Generator())
        >>> [round(value, 5) for value in found.ritz()[0].tolist()]
        [1.0, 2.0, 5.0]
    """
    size, steps = start.numel(), min(iterations, start.numel())
    basis = start.new_empty(steps, size)
    basis[0] = start / start.norm()
    diagonal, off_diagonal = start.new_zeros(2, steps)
    rounding = 100 * torch.finfo(start.dtype).eps
    for step in range(steps):
        seen = basis[: step + 1]
        image = product(basis[step])
        diagonal[step] = basis[step] @ image
        rest = _orthogonal(image, seen)
        length = rest.norm()
        ended = bool(length <= rounding * image.norm())
        off_diagonal[step] = 0 if ended else length
        if step + 1 < steps:
            if ended:
                rest = torch.randn(size, generator=generator).to(rest)
                length = rest.norm()
            rest = _orthogonal(rest / length, seen)
            basis[step + 1] = rest / rest.norm()
    return Krylov(diagonal.double().cpu(), off_diagonal.double().cpu())


def largest(spaces: Sequence[Krylov], count: int) -> tuple[Tensor, Tensor]:
    """The algebraically largest eigenvalues of a matrix as several spaces see them, falling, and their distance from an
    eigenvalue, at most; `(count,)` both, NaN where the matrix has not as many.

    No space's k-th value is above the k-th eigenvalue (Courant and Fischer), so of all the highest is taken. One that
    occurs several times is seen once.
    """
    seen = [space.ritz() for space in spaces]
    values = torch.stack([each[0].flip(0) for each in seen])
    best, index = values.max(0)
    distances = torch.stack([each[2].flip(0) for each in seen]).gather(0, index[None])[0]
    missing = best.new_full((max(0, count - len(best)),), torch.nan)
    return torch.cat([best, missing])[:count], torch.cat([distances, missing])[:count]


def smallest(spaces: Sequence[Krylov]) -> float:
    """The algebraically smallest eigenvalue as several spaces see it; it is not above that."""
    return min(float(space.ritz()[0][0]) for space in spaces)


def density(spaces: Sequence[Krylov], points: int) -> tuple[Tensor, Tensor]:
    """The share of a matrix's eigenvalues per unit, by stochastic Lanczos quadrature (Golub & Welsch 1969; Ghorbani et
    al. 2019, arXiv:1901.10159, section 2), on as many points.

        phi(t) = mean over spaces of sum_i w_i N(t; theta_i, sigma^2)

    theta_i are the eigenvalues of a space of m vectors, w_i their weights in its start, which must be random. Before
    smoothing, the first 2 m - 1 moments are those of the start: of random signs, without bias those of the spectrum.
    sigma is 0.01 of the distance of the ends, which the points pass by six sigma. The integral is 1.

    Returns:
        The points, evenly spaced, and phi there, per unit of the matrix; `(points,)` both. NaN where a product was not
        finite.
    """
    values, weights = (torch.stack(each) for each in zip(*(space.ritz()[:2] for space in spaces), strict=True))
    low, high = values.min(), values.max()
    # Equal eigenvalues, as the zeros of a plane, have no ends to measure by.
    spread = high - low
    whole = torch.where(spread > 1e-12 * values.abs().max(), spread, values.abs().max())
    sigma = WIDTH * torch.where(whole == 0, 1, whole)
    grid = low - 6 * sigma + (spread + 12 * sigma) * torch.linspace(0, 1, points, dtype=values.dtype)
    kernels = (-0.5 * ((grid[:, None, None] - values) / sigma).square()).exp() / (sigma * (2 * pi) ** 0.5)
    return grid, (kernels * weights).sum((1, 2)) / len(spaces)


def _orthogonal(vector: Tensor, basis: Tensor) -> Tensor:
    """What of a vector is at a right angle to an orthonormal basis, in rows."""
    for _ in range(2):
        vector = vector - basis.mT @ (basis @ vector)
    return vector
