"""Spectral norm (Miyato et al. 2018, arXiv:1802.05957)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from normcore.norms.norm import at_least_float32
from normcore.seeds import generator
from normcore.weights.weight import Reparametrization, maps, reparametrize

WARM_UP = 15
"""Power iterations before the first use, as in torch."""


class SpectralNorm(Reparametrization):
    """The weight divided by its largest singular value: the map multiplies no length by more than one.

        w = W / sigma,  sigma = u^T W v

    W is the learned weight as a matrix, an output unit per row. u and v are buffers, the estimates of its first
    singular vectors, and count as constants in the derivative, which is that of the largest singular value once they
    have converged. They move by power iteration, `u = W v / ||W v||` and `v = W^T u / ||W^T u||`, where `advance` is
    called, once after each update, and not in the forward pass as torch does it: so a step that is seen again is the
    same step, and a probe sees one and the same function of W at all of its points. In a plain loop of forward pass and
    update both give the same weights. Nothing is learned besides. Of a convolution the kernel's matrix is what is
    divided, not the map.

    Args:
        weight: That it will stand on.
        iterations: Of the power method after each update.
        eps: Shortest length that a vector is divided by.

    Example:
        >>> weight = torch.randn(4, 8)
        >>> w = SpectralNorm(weight, iterations=1)(weight)
        >>> round(torch.linalg.matrix_norm(w, 2).item(), 1)
        1.0
    """

    u: Tensor
    v: Tensor

    def __init__(self, weight: Tensor, *, iterations: int = 1, eps: float = 1e-12) -> None:
        super().__init__()
        self.iterations, self.eps = iterations, eps
        kept = at_least_float32(weight.dtype)
        self.register_buffer("u", torch.empty(weight.shape[0], device=weight.device, dtype=kept))
        self.register_buffer("v", torch.empty(weight[0].numel(), device=weight.device, dtype=kept))
        if not weight.is_meta:
            start = torch.randn(self.v.shape, generator=generator("cpu", 0, "spectral"), dtype=torch.float32)
            self.v.copy_(start)
            self._iterate(weight, WARM_UP)

    def reparametrize(self, weight: Tensor) -> Tensor:
        """The weight over its largest singular value, `(out, in, *)`."""
        rows = weight.flatten(1)
        # Not a matrix product, whose factors autocast would round.
        sigma = ((rows * self.v).sum(1) * self.u).sum()
        return weight / sigma

    def advance(self, weight: Tensor, *, unless: Tensor) -> None:
        """Follow the singular vectors of a weight that was updated.

        Args:
            weight: The learned one.
            unless: Where this is one, on the device, there was no update and the vectors stay as they are.
        """
        u, v = self.u.clone(), self.v.clone()
        self._iterate(weight, self.iterations)
        self.u.copy_(torch.where(unless.bool(), u, self.u))
        self.v.copy_(torch.where(unless.bool(), v, self.v))

    @torch.no_grad()
    def _iterate(self, weight: Tensor, iterations: int) -> None:
        rows = weight.flatten(1).to(self.u.dtype)
        for _ in range(iterations):
            self.u.copy_(functional.normalize(rows @ self.v, dim=0, eps=self.eps))
            self.v.copy_(functional.normalize(rows.T @ self.u, dim=0, eps=self.eps))

    def extra_repr(self) -> str:
        """The knobs."""
        return f"iterations={self.iterations}, eps={self.eps}"


def apply(model: nn.Module, *, iterations: int = 1, eps: float = 1e-12) -> None:
    """Divide the weights of every map of a model but its classifier by their largest singular value."""
    reparametrize(model, lambda weight: SpectralNorm(weight, iterations=iterations, eps=eps))


def spectral_norms(model: nn.Module) -> list[tuple[SpectralNorm, Tensor]]:
    """The spectral norms of a model, each with the weight that it stands on, for `advance` after each update."""
    return [
        (method, layer.get_parameter("parametrizations.weight.original"))
        for layer in maps(model).values()
        for method in layer.modules()
        if isinstance(method, SpectralNorm)
    ]
