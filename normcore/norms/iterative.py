"""Iterative normalization, IterNorm (Huang et al. 2019, arXiv:1904.03441)."""

from __future__ import annotations

import torch
from torch import Tensor

from normcore.norms.decorrelating import Decorrelating


class IterativeNorm(Decorrelating):
    """The channels of a group decorrelated, towards variance one, by some iterations of Newton's method.

        sigma = cov(x) + eps I                    of the D channels of a group, over batch and pixels; biased
        P_0 = I,  P_k+1 = (3 P_k - P_k^3 S) / 2   with S = sigma / tr(sigma), whose eigenvalues lie in (0, 1]
        y = gamma W (x - mean) + beta             with W = P_T / sqrt(tr(sigma))

    What the covariance of the output becomes is known: along an eigenvector of sigma with eigenvalue l it is (but for
    eps) l p_T^2 / tr(sigma), where p is the same iteration with l / tr(sigma) for S. It rises towards 1, first where l
    is large: few iterations leave directions of little variance, mostly noise of the batch, small. Many iterations are
    zca `Whitening`; one channel per group is batch norm, whatever T.

    The iteration as written falls apart: rounding makes P and S not commute, and within 10 to 15 iterations that error
    has grown to any size. Here it runs coupled, (Y, Z) from (S, I) by R = (3 I - Z Y) / 2, Y <- Y R, Z <- R Z (Higham
    2008, section 6.7): Z_k is P_k, at the same cost, and stable. `newton_residual` watches over it: it is
    ||I - W sigma W|| / sqrt(D) of the group where that is largest, in the last training pass. Exact arithmetic gives a
    value from 0, white, to 1; more says that the numbers failed. It is a reading and no part of the state.

    In training mean and W are the batch's; in evaluation they are running averages of both (of W, as in the authors'
    code, not of sigma; other than there, groups have a covariance each). Costs two products with D x D matrices per
    value, and three products of such matrices per iteration and group.

    Args:
        num_features: C, the channels.
        iterations: T.
        channels_per_group: D, the channels of a group; must divide C.
        divisibility: Where they do not: `error`, or `nearest` for the nearest number that does.
        eps: Added to the diagonal of the covariance.
        momentum: Weight of the newest batch in the running mean and the running W.
        affine: Learn gamma and beta.
        device: Where parameters and buffers live.
        dtype: Of parameters and buffers, float32 or better.

    Raises:
        Refusal: `channels_per_group` does not divide `num_features`.

    Example:
        >>> mixed = torch.randn(1000, 4) @ torch.randn(4, 4)
        >>> y = IterativeNorm(4, channels_per_group=4, iterations=20)(mixed)
        >>> bool((y.T @ y / 1000 - torch.eye(4)).abs().max() < 0.01)
        True
    """

    newton_residual: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        iterations: int = 5,
        channels_per_group: int = 64,
        divisibility: str = "error",
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            num_features,
            channels_per_group=channels_per_group,
            divisibility=divisibility,
            eps=eps,
            momentum=momentum,
            affine=affine,
            device=device,
            dtype=dtype,
        )
        self.iterations = iterations
        # A vector of one: what a compiled graph writes into a float64 number without dimensions is lost in torch 2.13.
        self.register_buffer("newton_residual", self.running_mean.new_zeros(1), persistent=False)

    def whitening(self, covariance: Tensor, orders: int = 2) -> Tensor:  # noqa: ARG002
        """W = P_T / sqrt(tr(sigma)) of each group, `(G, D, D)`; exact in all derivatives."""
        identity = torch.eye(self.channels_per_group, device=covariance.device, dtype=covariance.dtype)
        sigma = covariance + self.eps * identity
        trace = sigma.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
        y = sigma / trace
        z = step = 1.5 * identity - 0.5 * y
        for _ in range(self.iterations - 1):
            y = y @ step
            step = 1.5 * identity - 0.5 * z @ y
            z = step @ z
        return z * trace.rsqrt()

    def watch(self, covariance: Tensor, whitening: Tensor) -> None:
        """Keep the residual."""
        identity = torch.eye(self.channels_per_group, device=covariance.device, dtype=covariance.dtype)
        sigma = covariance + self.eps * identity
        residuals = (identity - whitening @ sigma @ whitening).square().mean((1, 2)).mul(self.channels_per_group).sqrt()
        self.newton_residual.copy_(residuals.max())

    def diagnosis(self) -> dict[str, Tensor]:
        """`newton_residual`, see `normcore.norms.diagnosis`."""
        return {"newton_residual": self.newton_residual}

    def extra_repr(self) -> str:
        """The channels and the knobs."""
        return (
            f"{self.num_features}, iterations={self.iterations}, channels_per_group={self.channels_per_group}, "
            f"eps={self.eps}, momentum={self.momentum}, affine={self.affine}"
        )
