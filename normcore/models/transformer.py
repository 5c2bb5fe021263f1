"""The transformer's encoder (Vaswani et al. 2017, arXiv:1706.03762) as a classifier of images, sequences and tokens."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

import torch
from torch import Tensor, nn

from normcore.models.attention import SelfAttention
from normcore.models.block import ACTIVATIONS, Part
from normcore.models.dropout import Dropout
from normcore.models.embedding import PatchEmbedding, sinusoids
from normcore.models.initialize import Embedding, Linear, initialize
from normcore.models.token_site import PostNorm, PreNorm, TokenSite


class Transformer(nn.Module):
    """Blocks of self-attention and a small MLP, each added to what it was given, then the mean token's classifier.

    Images become patches (a small ViT, Dosovitskiy et al. 2021), the features of a sequence are mapped, and token ids
    look their vectors up; fixed sinusoids are added. With `norm_placement` pre each branch begins with a norm, and one
    more stands behind the last block; with post a norm follows each addition, as in the original. Noise follows every
    norm. Padding has no influence on the logits: it weighs nothing in attention and in the mean, and norms leave it
    out.

    Args:
        shape: Channels, height and width of an image; length and features of a sequence; or length of token ids.
        num_classes: Logits.
        norm: Makes a norm.
        noise: Makes a noise.
        seed: Of the initial weights.
        vocabulary: Number of token ids, padding 0 included; of token data only.
        depth: Blocks.
        width: Of a token.
        heads: Of the attention; must divide the width.
        mlp_ratio: Hidden width of the MLPs over the width.
        patch: Pixels of a patch's side, for images.
        norm_placement: pre or post.
        activation: Inside the MLPs: relu, sigmoid or tanh.
        dropout: Probability of zero for each value that a branch adds, and of what the first block is given.
        init: How weights are drawn, glorot or he.
        device: Where the parameters live.
        dtype: Of the parameters.

    Raises:
        Refusal: The heads do not divide the width, the patch does not divide the image, or the norm holds its own
            non-linearity or takes padding for values.

    Example:
        >>> from normcore.noise.none import NoNoise
        >>> from normcore.norms.layer_channels import LayerNormChannels
        >>> model = Transformer((12,), 2, norm=LayerNormChannels, noise=NoNoise, seed=0, vocabulary=30, depth=2)
        >>> short, padded = torch.tensor([[5, 6, 7]]), torch.tensor([[5, 6, 7, 0, 0]])
        >>> torch.allclose(model(short), model(padded), atol=1e-5)
        True
    """

    positions: Tensor
    """`(L, width)`."""

    def __init__(
        self,
        shape: tuple[int, ...],
        num_classes: int,
        *,
        norm: Part,
        noise: Part,
        seed: int,
        vocabulary: int | None = None,
        depth: int = 4,
        width: int = 64,
        heads: int = 4,
        mlp_ratio: int = 2,
        patch: int = 4,
        norm_placement: str = "pre",
        activation: str = "relu",
        dropout: float = 0.0,
        init: str = "glorot",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        linear = partial(Linear, device=device, dtype=dtype)
        length = shape[0]
        if vocabulary is not None:
            self.embedding: nn.Module = Embedding(vocabulary, width, device=device, dtype=dtype)
        elif len(shape) == 3:
            self.embedding = PatchEmbedding(shape, width, patch, device=device, dtype=dtype)
            length = (shape[1] // patch) * (shape[2] // patch)
        else:
            self.embedding = linear(shape[1], width)
        self.register_buffer("positions", sinusoids(length, width).to(device=device, dtype=dtype), persistent=False)

        def site(path: str) -> TokenSite:
            return TokenSite(norm(width), noise(width), padded=vocabulary is not None, layer=path)

        branch = PreNorm if norm_placement == "pre" else PostNorm

        def drop() -> nn.Module:
            return Dropout(dropout) if dropout > 0 else nn.Identity()

        self.dropout = drop()
        self.blocks = nn.ModuleList()
        for number in range(depth):
            attention = SelfAttention(width, heads, device=device, dtype=dtype)
            mlp = Mapped(linear(width, mlp_ratio * width), ACTIVATIONS[activation](), linear(mlp_ratio * width, width))
            self.blocks.append(
                nn.ModuleDict(
                    OrderedDict(
                        attention=branch(site(f"blocks.{number}.attention.site"), attention, drop()),
                        mlp=branch(site(f"blocks.{number}.mlp.site"), mlp, drop()),
                    )
                )
            )
        self.last = site("last") if norm_placement == "pre" else None
        self.classifier = Linear(width, num_classes, device=device, dtype=dtype)
        initialize(self, init=init, seed=seed)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits `(N, num_classes)`.

        Args:
            x: Images `(N, C, H, W)`, sequences `(N, L, D)`, or token ids `(N, L)` in int64, no longer than `shape`.
            mask: `(N, L)`, True where a token is real; when not given, ids that are not 0 are, and all of a sequence.
        """
        if mask is None and isinstance(self.embedding, Embedding):
            mask = x != 0
        tokens = self.embedding(x)
        tokens = self.dropout(tokens + self.positions[: tokens.shape[1]])
        for block in self.blocks:
            assert isinstance(block, nn.ModuleDict)
            tokens = block["mlp"](block["attention"](tokens, mask), mask)
        if self.last is not None:
            tokens = self.last(tokens, mask)
        logits: Tensor = self.classifier(_mean(tokens, mask))
        return logits


class Mapped(nn.Sequential):
    """Two linear maps with an activation between them, for each token by itself, padded or not."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """The tokens `(N, L, width)`."""
        y: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
        return y


def _mean(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Of the real tokens of each sample, `(N, C)`; zero where there are none."""
    if mask is None:
        return tokens.mean(1)
    real = mask.unsqueeze(2)
    return torch.where(real, tokens, 0.0).sum(1) / real.sum(1).clamp(min=1)
