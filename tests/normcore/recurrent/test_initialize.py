import torch
from torch import nn

from normcore.recurrent.initialize import initialize
from normcore.recurrent.layer_lstm import LayerLstmCell
from normcore.recurrent.lstm import Lstm
from normcore.recurrent.lstm_cell import LstmCell


def test_cells_of_a_model_are_told_apart_by_their_paths():
    stack = nn.ModuleList(Lstm(LstmCell(4, 4)) for _ in range(2))
    assert torch.equal(stack[0].cell.weight_hh, stack[1].cell.weight_hh)
    initialize(stack, init="orthogonal", seed=0)
    assert not torch.equal(stack[0].cell.weight_hh, stack[1].cell.weight_hh)


def test_arms_with_other_norms_share_their_weights_and_norms_are_left_alone():
    plain, normed = Lstm(LstmCell(4, 4)), Lstm(LayerLstmCell(4, 4, seed=3))
    nn.init.constant_(normed.cell.norm_c.weight, 7.0)
    for model in (plain, normed):
        initialize(model, init="identity", seed=1)
    assert torch.equal(plain.cell.weight_ih, normed.cell.weight_ih)
    assert torch.equal(plain.cell.weight_hh, normed.cell.weight_hh)
    assert (normed.cell.norm_c.weight == 7).all()


def test_meta_cells_are_left_alone():
    initialize(Lstm(LstmCell(4, 4, device="meta")), init="orthogonal", seed=0)
