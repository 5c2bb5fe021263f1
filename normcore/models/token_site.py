"""A norm with its noise among tokens."""

from __future__ import annotations

from torch import Tensor, nn

from normcore.norms.norm import Norm
from normcore.norms.padding import check_padding
from normcore.refusal import Refusal


class TokenSite(nn.Module):
    """Norm, then noise, of tokens `(N, L, C)`.

    Norms are given `(N, C, L)`, as they are given images, with the channels of a token side by side in memory; and the
    mask, where they take one.

    Args:
        norm: Of C channels.
        noise: Of C channels.
        padded: Whether there will be padding.
        layer: Its module path, for refusals.

    Raises:
        Refusal: The norm holds its own non-linearity, which no activation of a transformer gives way to; or there will
            be padding, and the norm would take it for values.
    """

    def __init__(self, norm: nn.Module, noise: nn.Module, *, padded: bool, layer: str) -> None:
        super().__init__()
        if isinstance(norm, Norm):
            if norm.activates:
                raise Refusal(
                    "no-activation-after-norm",
                    f"{type(norm).__name__} holds its own non-linearity and takes the place of a relu that follows it, "
                    f"got a transformer, where linear maps and additions follow the norms; take a norm without a "
                    f"non-linearity, such as layer_channels",
                    layer=f"{layer}.norm",
                )
            if padded:
                check_padding(norm, f"{layer}.norm")
        self.norm, self.noise = norm, noise

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The tokens normalized, `(N, L, C)`; what stands in padding is of no account."""
        takes_mask = mask is not None and getattr(self.norm, "takes_mask", False)
        y = self.norm(x.mT, mask) if takes_mask else self.norm(x.mT)
        noised: Tensor = self.noise(y)
        return noised.mT


class PreNorm(nn.Module):
    """A branch whose norm stands at its start: `x + dropout(inner(site(x)))` (Xiong et al. 2020, arXiv:2002.04745).

    Args:
        site: The norm with its noise.
        inner: Of tokens and their mask.
        dropout: At the end of the branch.
    """

    def __init__(self, site: TokenSite, inner: nn.Module, dropout: nn.Module) -> None:
        super().__init__()
        self.site, self.inner, self.dropout = site, inner, dropout

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The sum, `(N, L, C)`."""
        branch: Tensor = self.dropout(self.inner(self.site(x, mask), mask))
        return x + branch


class PostNorm(nn.Module):
    """A branch whose norm stands behind the addition: `site(x + dropout(inner(x)))` (Vaswani et al. 2017).

    Args:
        site: The norm with its noise.
        inner: Of tokens and their mask.
        dropout: At the end of the branch.
    """

    def __init__(self, site: TokenSite, inner: nn.Module, dropout: nn.Module) -> None:
        super().__init__()
        self.site, self.inner, self.dropout = site, inner, dropout

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The normalized sum, `(N, L, C)`."""
        y: Tensor = self.site(x + self.dropout(self.inner(x, mask)), mask)
        return y
