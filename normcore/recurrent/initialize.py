"""Initial values of all cells of a model, drawn per parameter name."""

from __future__ import annotations

from torch import nn

from normcore.recurrent.cell import Cell, Init


def initialize(model: nn.Module, *, init: Init, seed: int) -> None:
    """Draw the weights of all cells of a model, each from streams of its own name, see `Cell.draw`.

    Cells that are built with the same seed share their streams; this tells them apart by their module paths, as
    `normcore.models.initialize` does for layers. Two models share the initial values of all parameters whose names and
    shapes they share: arms with different norms start from the same weights.

    Example:
        >>> from normcore.recurrent.batch_lstm import BatchLstmCell
        >>> from normcore.recurrent.lstm import Lstm
        >>> from normcore.recurrent.lstm_cell import LstmCell
        >>> plain, normed = Lstm(LstmCell(3, 4)), Lstm(BatchLstmCell(3, 4, max_length=5))
        >>> for model in (plain, normed):
        ...     initialize(model, init="identity", seed=1)
        >>> bool((plain.cell.weight_hh == normed.cell.weight_hh).all())
        True
    """
    for path, module in model.named_modules():
        if isinstance(module, Cell):
            module.draw(init, seed, path)
