from functools import partial
from typing import Any

import pytest
import torch

from normcore.models.lstm import LstmClassifier
from normcore.noise.none import NoNoise
from normcore.norms.batch import BatchNorm
from normcore.norms.layer import LayerNorm
from normcore.norms.layer_channels import LayerNormChannels
from normcore.norms.none import NoNorm
from normcore.norms.rms import RmsNorm
from normcore.recurrent.batch_lstm import BatchLstmCell
from normcore.recurrent.layer_lstm import LayerLstmCell
from normcore.recurrent.lstm_cell import LstmCell
from normcore.refusal import Refusal

IDS = torch.tensor([[1, 2, 3, 4], [3, 4, 0, 0], [5, 6, 7, 0]])


def made(norm: Any, **knobs: Any) -> LstmClassifier:
    small = {"vocabulary": 9, "hidden": 6} | knobs
    return LstmClassifier((7,), 3, norm=norm, noise=NoNoise, seed=0, dtype=torch.float64, **small)


@pytest.mark.parametrize(
    ("norm", "cell"),
    [(NoNorm, LstmCell), (BatchNorm, BatchLstmCell), (LayerNorm, LayerLstmCell), (LayerNormChannels, LayerLstmCell)],
)
def test_the_norm_chooses_the_cell_and_the_weights_start_the_same(norm, cell):
    model, plain = made(norm), made(NoNorm)
    assert type(model.lstm.cell) is cell
    assert torch.equal(model.lstm.cell.weight_hh, plain.lstm.cell.weight_hh)
    assert model(IDS).shape == (3, 3)


def test_the_knobs_of_the_norm_are_the_cells():
    norm = made(partial(BatchNorm, eps=0.01, momentum=0.3), gamma=0.2).lstm.cell.norm_h
    assert (norm.eps, norm.momentum, norm.estimator, norm.max_length) == (0.01, 0.3, "ema", 7)
    assert (norm.weight == 0.2).all()


@pytest.mark.parametrize("norm", [NoNorm, BatchNorm, LayerNorm])
def test_padding_has_no_influence(norm):
    longer = torch.nn.functional.pad(IDS, (0, 3))
    torch.testing.assert_close(made(norm)(longer), made(norm)(IDS), rtol=0, atol=1e-12)
    filled = torch.where(longer == 0, 8, longer)
    torch.testing.assert_close(made(norm)(filled, longer != 0), made(norm)(IDS), rtol=0, atol=1e-12)


def test_the_plain_one_is_torchs():
    model = LstmClassifier((5, 4), 3, norm=NoNorm, noise=NoNoise, seed=0, hidden=6, dtype=torch.float64)
    theirs, cell = torch.nn.LSTM(4, 6, batch_first=True, dtype=torch.float64), model.lstm.cell
    values = (cell.weight_ih, cell.weight_hh, cell.bias, torch.zeros_like(cell.bias))
    theirs.load_state_dict(dict(zip(theirs.state_dict(), values, strict=True)))
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(model(x), model.classifier(theirs(x)[0][:, -1]))


def test_norms_without_a_cell_are_refused():
    with pytest.raises(Refusal, match=r"none, batch and layer .* got RmsNorm; take one of the three"):
        made(RmsNorm)
    with pytest.raises(Refusal, match="got BatchNorm with affine false; set affine to true"):
        made(partial(BatchNorm, affine=False))
