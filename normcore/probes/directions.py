"""Directions in the space of weights, in which a loss is looked at."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from normcore.norms.norm import Norm
from normcore.probes.kept_weights import chunks

NORMS = (Norm, nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)  # noqa: SLF001


def filter_normalized(model: nn.Module, draw: torch.Generator) -> Tensor:
    """A random direction, each filter of which is as long as the model's (Li et al. 2018, arXiv:1712.09913, section 4).

    Drawn is a standard normal number per weight; then d_f <- d_f ||theta_f|| / ||d_f|| for each filter f, which is
    what stands under one index of a weight's first dimension: the weights of an output channel of a convolution, or of
    a unit of a linear layer. So the loss of a net whose filters are large, and little moved by a step of length one, is
    seen on the scale of its filters. Biases and all parameters of norms do not move, as in the authors' pictures.

    Args:
        model: At the weights whose filters count.
        draw: On the CPU.

    Returns:
        `(P,)` on the CPU, in float64, in the order of `model.parameters()`.

    Example:
        >>> layer = nn.Linear(3, 2)
        >>> d = filter_normalized(layer, torch.Generator().manual_seed(0))
        >>> bool(torch.allclose(d[:6].view(2, 3).norm(dim=1), layer.weight.double().norm(dim=1)))
        True
        >>> d[6:].tolist()
        [0.0, 0.0]
    """
    still = {id(p) for module in model.modules() if isinstance(module, NORMS) for p in module.parameters()}
    pieces: list[Tensor] = []
    for parameter in model.parameters():
        drawn = torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
        if parameter.dim() < 2 or id(parameter) in still:
            pieces.append(torch.zeros(parameter.numel(), dtype=torch.float64))
            continue
        drawn, weights = drawn.flatten(1), parameter.detach().cpu().double().flatten(1)
        lengths = drawn.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
        pieces.append((drawn * (weights.norm(dim=1, keepdim=True) / lengths)).flatten())
    return torch.cat(pieces)


def principal(vectors: Sequence[Tensor], end: Tensor) -> tuple[Tensor, Tensor]:
    """The two directions that hold most of a trajectory (Li et al. 2018, arXiv:1712.09913, section 7.2).

    With M the matrix of the differences of the weights from the last ones, a row per step, they are the two leading
    right singular vectors of M: of all planes through the end the one from which the squared distances of the steps are
    smallest. M is not centred, so that the end lies in the plane. They are of length one, and point such that the step
    farthest along each lies on its positive side.

    Args:
        vectors: `(P,)` each, on the CPU.
        end: Likewise.

    Returns:
        Two vectors `(P,)` in float64, at right angles.

    Raises:
        ValueError: The steps lie on a line through the end, or there is but one.
    """
    count = len(vectors)
    # Of the small matrix M M^T: its eigenvectors are M's left singular vectors. Two vectors of P numbers at most.
    gram = torch.zeros(count, count, dtype=torch.float64)
    for part in chunks(vectors, end) if count else ():
        gram += part @ part.T
    values, left = torch.linalg.eigh(gram)
    if count < 2 or not values[-2] > 1e-12 * values[-1]:
        raise ValueError(
            f"the weights kept before the end must span a plane with it, got {count} of them that do not; "
            f"lower every, or take random directions"
        )
    columns = left[:, [-1, -2]]
    farthest = columns.abs().argmax(dim=0)
    columns = columns * columns.gather(0, farthest[None]).sign()
    found = torch.cat([columns.T @ part for part in chunks(vectors, end)], dim=1)
    found /= values[[-1, -2]].sqrt()[:, None]
    return found[0], found[1]


def coordinates(vectors: Sequence[Tensor], end: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where vectors stand in the plane of two directions through `end`, by least squares.

    Args:
        vectors: `(P,)` each, on the CPU.
        end: Likewise.
        x: A direction `(P,)` in float64.
        y: Another, which need not be at right angles.

    Returns:
        Coordinates `(rows, 2)`; and of the sum of the squared distances from the end, which part lies along x alone and
        which in the plane, NaN where nothing has moved.

    Example:
        >>> end, x, y = torch.zeros(3).double(), torch.eye(3)[0].double(), torch.eye(3)[1].double()
        >>> place, along_x, in_plane = coordinates([torch.tensor([3.0, 4.0, 0.0]).double()], end, x, y)
        >>> place.tolist(), along_x.item(), in_plane.item()
        ([[3.0, 4.0]], 0.36, 1.0)
    """
    plane = torch.stack([x, y])
    inverse = torch.linalg.pinv(plane @ plane.T, hermitian=True)
    projected, squares = torch.zeros(len(vectors), 2, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    start = 0
    for part in chunks(vectors, end) if vectors else ():
        projected += part @ plane[:, start : start + part.shape[1]].T
        squares += part.square().sum()
        start += part.shape[1]
    place = projected @ inverse
    along_x = projected[:, 0].square().sum() / x.square().sum()
    return place, along_x / squares, (place * projected).sum() / squares
