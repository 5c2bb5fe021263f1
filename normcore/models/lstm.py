"""An LSTM (Hochreiter & Schmidhuber 1997) as a classifier of sequences and tokens, with norms inside its recurrence."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normcore.models.block import Part
from normcore.models.dropout import Dropout
from normcore.models.initialize import Embedding, Linear, initialize
from normcore.norms.batch import BatchNorm
from normcore.norms.layer import LayerNorm
from normcore.norms.layer_channels import LayerNormChannels
from normcore.norms.none import NoNorm
from normcore.recurrent import initialize as cells
from normcore.recurrent.batch_lstm import BatchLstmCell
from normcore.recurrent.cell import Cell
from normcore.recurrent.layer_lstm import LayerLstmCell
from normcore.recurrent.lstm import Lstm
from normcore.recurrent.lstm_cell import LstmCell
from normcore.refusal import Refusal


class LstmClassifier(nn.Module):
    """One LSTM along a sequence, and a linear classifier of its last real state.

    The norm chooses the cell: none the plain one, batch the BN-LSTM (Cooijmans et al. 2017), whose statistics are those
    of each time step, layer and layer_channels, which are the same on a state, the LN-LSTM (Ba et al. 2016). Noise does
    not stand inside the recurrence, where that of every time step would add up: it disturbs the state that the
    classifier is given, and dropout follows it. Arms with different norms start from the same weights.

    Costs T products one after another, T the length; the backward pass keeps the gates of every time step.

    Args:
        shape: Length and features of a sequence, or length of token ids.
        num_classes: Logits.
        norm: Makes the norm whose knobs the cell takes.
        noise: Makes the noise.
        seed: Of the initial weights.
        vocabulary: Number of token ids, padding 0 included; of token data only.
        hidden: Values of a state, and of a token's vector.
        gamma: Initial value of all gammas of a BN-LSTM.
        dropout: Probability of zero for each value of the state that the classifier is given.
        init: How the cell's weights are drawn, orthogonal or identity, see `Cell.draw`.
        device: Where the parameters live.
        dtype: Of the parameters.

    Raises:
        Refusal: There is no cell with this norm.

    Example:
        >>> from normcore.noise.none import NoNoise
        >>> model = LstmClassifier((7,), 2, norm=BatchNorm, noise=NoNoise, seed=0, vocabulary=30, hidden=8)
        >>> short, padded = torch.tensor([[5, 6], [4, 3]]), torch.tensor([[5, 6, 0], [4, 3, 0]])
        >>> torch.equal(model(short), model(padded))
        True
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        num_classes: int,
        *,
        norm: Part,
        noise: Part,
        seed: int,
        vocabulary: int | None = None,
        hidden: int = 128,
        gamma: float = 0.1,
        dropout: float = 0.0,
        init: str = "orthogonal",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        features = shape[1] if vocabulary is None else hidden
        self.embedding = None if vocabulary is None else Embedding(vocabulary, hidden, device=device, dtype=dtype)
        cell = _cell(norm(4 * hidden), (features, hidden), length=shape[0], gamma=gamma, device=device, dtype=dtype)
        self.lstm = Lstm(cell)
        self.noise = noise(hidden)
        self.dropout = Dropout(dropout) if dropout > 0 else nn.Identity()
        self.classifier = Linear(hidden, num_classes, device=device, dtype=dtype)
        initialize(self, init="glorot", seed=seed)
        cells.initialize(self, init="identity" if init == "identity" else "orthogonal", seed=seed)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits `(N, num_classes)`.

        Args:
            x: Sequences `(N, L, D)`, or token ids `(N, L)` in int64.
            mask: `(N, L)`, True where a token is real: all of them before all padding. When not given, ids that are not
                0 are real, and all of a sequence.
        """
        if mask is None and self.embedding is not None:
            mask = x != 0
        steps = x if self.embedding is None else self.embedding(x)
        _, (last, _) = self.lstm(steps, None if mask is None else mask.sum(1))
        logits: Tensor = self.classifier(self.dropout(self.noise(last)))
        return logits


def _cell(
    norm: nn.Module,
    sizes: tuple[int, int],
    *,
    length: int,
    gamma: float,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> Cell:
    if isinstance(norm, NoNorm):
        return LstmCell(*sizes, device=device, dtype=dtype)
    if type(norm) not in {BatchNorm, LayerNorm, LayerNormChannels}:
        raise Refusal(
            "norm-not-in-cell",
            f"an LSTM has its norms inside its cell, and there are cells with none, batch and layer (or "
            f"layer_channels, which is the same there), got {type(norm).__name__}; take one of the three",
            layer="lstm.cell",
        )
    if not norm.affine:
        raise Refusal(
            "norm-not-affine",
            f"the norms of a cell learn their scales, got {type(norm).__name__} with affine false; set affine to true",
            layer="lstm.cell",
        )
    if isinstance(norm, BatchNorm):
        # Only the estimate that forgets has a momentum.
        return BatchLstmCell(
            *sizes,
            max_length=length,
            eps=norm.eps,
            momentum=0.1 if norm.momentum is None else norm.momentum,
            estimator=norm.estimator,
            gamma=gamma,
            device=device,
            dtype=dtype,
        )
    assert isinstance(norm, LayerNorm | LayerNormChannels)
    return LayerLstmCell(*sizes, eps=norm.eps, device=device, dtype=dtype)
