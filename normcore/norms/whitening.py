"""Whitening by an eigendecomposition: decorrelated batch norm (Huang et al. 2018, arXiv:1804.08450)."""

from __future__ import annotations

import torch
from torch import Tensor

from normcore.norms.decorrelating import Decorrelating
from normcore.norms.inverse_root import pca, zca


class Whitening(Decorrelating):
    """The channels of a group decorrelated, each with variance one, by the eigenvectors of their covariance.

        sigma = cov(x) + eps I = U L U^T          of the D channels of a group, over batch and pixels; biased
        y = gamma W (x - mean) + beta             with W = U L^(-1/2) U^T (zca) or W = L^(-1/2) U^T (pca)

    Of all W that whiten, zca's is symmetric and moves the values least. PCA's turns them to the principal axes, whose
    order and signs may change from one batch to the next: the layers above then meet swapped channels, and the average
    of such W, which evaluation uses, whitens nothing (the paper's "stochastic axis swapping"). It is here to be seen
    failing. One channel per group is batch norm with zca; `IterativeNorm` comes to zca without an eigendecomposition.

    In training mean and W are the batch's; in evaluation they are running averages of both (of W, not of sigma; other
    than in the authors' code, groups have a covariance each). Gradients are finite where eigenvalues are equal, see
    `normcore.norms.inverse_root`. Costs two products with D x D matrices per value, and an eigendecomposition per
    group.

    Args:
        num_features: C, the channels.
        method: zca or pca.
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
        >>> y = Whitening(4, channels_per_group=4)(mixed)
        >>> bool((y.T @ y / 1000 - torch.eye(4)).abs().max() < 0.01)
        True
    """

    def __init__(
        self,
        num_features: int,
        *,
        method: str = "zca",
        channels_per_group: int = 16,
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
        self.method = method

    def whitening(self, covariance: Tensor, orders: int = 2) -> Tensor:
        """W of each group, `(G, D, D)`."""
        return (zca if self.method == "zca" else pca)(covariance, self.eps, orders)

    def extra_repr(self) -> str:
        """The channels and the knobs."""
        return (
            f"{self.num_features}, method={self.method}, channels_per_group={self.channels_per_group}, eps={self.eps}, "
            f"momentum={self.momentum}, affine={self.affine}"
        )
