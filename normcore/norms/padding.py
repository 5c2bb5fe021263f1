"""Which norms can stand on padded data."""

from __future__ import annotations

from normcore.norms.norm import Norm
from normcore.refusal import Refusal


def check_padding(norm: Norm, layer: str | None = None) -> None:
    """Raise `Refusal` where padding would move what a norm makes of real tokens.

    A norm that takes a mask leaves padding out; one that looks at each token by itself does not see it. Any other would
    take the zeros behind a short sample for values, and what a token becomes would depend on how far it was padded.

    Args:
        norm: That is to stand on padded data.
        layer: Where it stands, by its module path.

    Raises:
        Refusal: The norm mixes tokens or samples, and takes no mask.

    Example:
        >>> from normcore.norms.rms import RmsNorm
        >>> check_padding(RmsNorm(4))
    """
    if not norm.takes_mask and not norm.claims.per_pixel:
        mixed = "samples" if norm.claims.statistics == "batch" else "tokens of a sample"
        raise Refusal(
            "norm-takes-no-mask",
            f"on padded data a norm must leave padding out of its statistics, got {type(norm).__name__}, which mixes "
            f"{mixed} and takes no mask; take batch, group, layer or power, which take one, or layer_channels, rms or "
            f"dyt, which look at each token by itself",
            layer=layer,
        )
