import torch
from torch import nn

from normcore.recurrent.lstm_cell import LstmCell

DRAWS = torch.Generator().manual_seed(0)


def test_equals_torch_lstm_cell_whose_two_biases_are_one():
    ours, theirs = LstmCell(3, 5, dtype=torch.float64), nn.LSTMCell(3, 5).double()
    with torch.no_grad():
        ours.weight_ih.copy_(theirs.weight_ih)
        ours.weight_hh.copy_(theirs.weight_hh)
        ours.bias.copy_(theirs.bias_ih + theirs.bias_hh)
    x = torch.randn(4, 3, generator=DRAWS, dtype=torch.float64)
    state = tuple(torch.randn(2, 4, 5, generator=DRAWS, dtype=torch.float64))
    torch.testing.assert_close(ours(x, state), theirs(x, state))


def test_has_three_parameters_and_no_statistics():
    assert [name for name, _ in LstmCell(3, 5).named_parameters()] == ["weight_ih", "weight_hh", "bias"]
    assert not list(LstmCell(3, 5).buffers())
